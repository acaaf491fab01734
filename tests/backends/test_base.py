"""How a backend has the functions of its modules as methods, and what it says where it has none."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infodisent.backends import operators
from infodisent.backends.base import Backend
from infodisent.backends.operators import Kernels
from infodisent.backends.sparse import mx_pool
from infodisent.backends.table import BACKENDS, BY_NAME


def test_the_functions_of_a_module_are_methods(monkeypatch):
    class Pool(Backend):
        name = "pool"
        stems = ("mx_pool",)
        kernels = Kernels(mx_pool=mx_pool)

    class Same(Pool):
        """Inherits them."""

    y = torch.randn(2, 5, 3)
    for made in (Pool, Same):
        assert all(map(torch.equal, made().mx_pool(y), mx_pool.mx_pool(y)))
    assert Pool.mx_pool.__doc__ == mx_pool.mx_pool.__doc__
    monkeypatch.setattr(mx_pool, "mx_pool", lambda y: "looked up when it is called")
    assert Same().mx_pool(y) == "looked up when it is called"


def test_what_is_absent_says_so():
    backend = BY_NAME["cuda"]
    with pytest.raises(NotImplementedError, match="'cuda' has no kernels of mx_pool; 'triton'"):
        backend.mx_pool(torch.ones(1, 1, 1))
    for stem in operators.STEMS:
        for function in operators.functions(stem):
            method = getattr(Backend, function)
            nothing = [None] * (len(inspect.signature(method).parameters) - 1)
            if function == "infodisent_head":  # a backend without it has a pool and a product
                assert method(SimpleNamespace(), *nothing) is None
                continue
            with pytest.raises(NotImplementedError, match=f"no kernels of {function}"):
                method(SimpleNamespace(name="none"), *nothing)


@pytest.mark.parametrize(
    ("stems", "kernels", "message"),
    [
        ((), Kernels(mx_pool=mx_pool), "kernels of mx_pool, which is not in its stems"),
        (("mx_pool",), Kernels(mx_pool=SimpleNamespace(mx_pool=abs)), "have no mx_pool_backward"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(stems: Any, kernels: Any, message: str):
    with pytest.raises(TypeError, match=message):
        type("Wrong", (Backend,), {"stems": stems, "kernels": kernels})


def test_every_stem_of_every_backend_has_its_functions():
    """With the arguments of the protocol, by name and in order."""
    for backend in BACKENDS:
        given = [stem for stem in operators.STEMS if getattr(backend.kernels, stem) is not None]
        assert set(given) <= set(backend.stems)
        if backend.name == "reference":
            continue
        for stem in backend.stems:
            for name in operators.functions(stem):
                wanted = inspect.signature(getattr(Backend, name)).parameters
                module = getattr(backend.kernels, stem)
                found = getattr(module or backend, name)
                names = list(inspect.signature(found).parameters)
                assert names[: len(wanted) - 1] == list(wanted)[1:], (backend.name, name)
