"""Whether a row of a table ran what its label says: which backend served which operator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from infodisent.backends import BACKENDS, Backend
from infodisent.backends.table import BY_NAME
from infodisent.testing import WrongResultError

METHODS = (
    "rotation",
    "rotation_backward",
    "mx_pool",
    "mx_pool_backward",
    "rotate_pool",
    "rotate_pool_backward",
    "similarity_pool",
    "similarity_pool_backward",
    "softmax_pool",
    "softmax_pool_backward",
    "softmax_alignment",
    "softmax_alignment_backward",
    "infodisent_head",
)


@contextlib.contextmanager
def served() -> Iterator[list[tuple[str, str]]]:
    """Collects ``(method, name of the backend)`` of what backends are called for in the block."""
    calls: list[tuple[str, str]] = []

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def method(backend: Backend, *arguments: Any, **options: Any) -> Any:
            result = plain(backend, *arguments, **options)
            if name != "infodisent_head" or result is not None:  # None: something else follows
                calls.append((name, backend.name))
            return result

        return method

    classes = {type(backend) for backend in BY_NAME.values()}
    with contextlib.ExitStack() as stack:
        for owner in {base for one in classes for base in one.__mro__ if base is not object}:
            for name in METHODS:
                if name in vars(owner):
                    plain = vars(owner)[name]
                    stack.enter_context(mock.patch.object(owner, name, counted(name, plain)))
        yield calls


def served_by(run: Callable[[], object]) -> tuple[str, ...]:
    """Run once; names of the backends that served a part of it, sorted."""
    with served() as calls, torch.autograd.set_multithreading_enabled(False):
        run()
    return tuple(sorted({name for _, name in calls}))


def check_served(label: str, run: Callable[[], object], allowed: tuple[str, ...]) -> None:
    """Run once and raise unless backends were called, and only those of these names.

    Raises:
        WrongResultError: another backend served a part of it, or none any.
        ValueError: a name that no backend has.
    """
    unknown = set(allowed) - set(BY_NAME)
    if unknown:
        names = ", ".join(backend.name for backend in BACKENDS)
        raise ValueError(f"no backend is called {unknown.pop()!r}; there are {names}")
    with served() as calls, torch.autograd.set_multithreading_enabled(False):
        run()
    others = sorted({f"{method} by {name}" for method, name in calls if name not in allowed})
    if others or not calls:
        ran = ", ".join(others) or "no backend"
        raise WrongResultError(f"{label}: ran {ran}, not {' or '.join(allowed)}")
