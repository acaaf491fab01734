"""`torch.func` and files that leave the process: served by the formulas, or told what to do."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from infodisent import InfoDisentHead, backends, ops, reference
from infodisent.backends import BackendError


@pytest.fixture(params=["exp", "lie"])
def head(request):
    head = InfoDisentHead(6, 3, parametrization=request.param, bias=True).eval()
    torch.nn.init.normal_(head.rotation.A, std=0.1)
    return head


def test_gradients_of_each_image(head):
    x, y = torch.randn(4, 6, 3, 3), torch.tensor([0, 1, 2, 0])
    parameters = {name: p.detach() for name, p in head.named_parameters()}

    def loss(p, x, y):
        logits = functional_call(head, p, (x[None],))
        return torch.nn.functional.cross_entropy(logits, y[None])

    each = vmap(grad(loss), (None, 0, 0))(parameters, x, y)
    for i in range(4):
        head.zero_grad()
        torch.nn.functional.cross_entropy(head(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in head.named_parameters():
            torch.testing.assert_close(each[name][i], p.grad, atol=1e-5, rtol=1e-4)


def test_jacobians_forward_and_backward_agree(head):
    x = torch.randn(2, 6, 3, 3)
    rows = jacrev(head)(x)
    torch.testing.assert_close(rows, jacfwd(head)(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows, torch.autograd.functional.jacobian(head, x))
    direction = torch.randn_like(x)
    value, tangent = jvp(head, (x,), (direction,))
    torch.testing.assert_close(value, head(x))
    torch.testing.assert_close(tangent, (rows * direction).sum((2, 3, 4, 5)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vjp(head, x)[1](torch.ones(2, 3))[0], rows.sum((0, 1)))


def test_second_derivatives():
    a = torch.randn(5, 5)
    ours = hessian(lambda a: ops.rotation(a)[0, 1])(a)
    torch.testing.assert_close(ours, hessian(lambda a: reference.rotation(a)[0, 1])(a))


@pytest.mark.parametrize("name", ["sparse", "reference"])
def test_an_explicit_choice_is_kept_or_refused(name):
    y = torch.randn(2, 6, 3, 3)
    with backends.use_backend(name):
        if name == "reference":
            torch.testing.assert_close(
                grad(lambda y: ops.mx_pool(y).pooled.sum())(y),
                grad(lambda y: reference.mx_pool(y).pooled.sum())(y),
            )
            with forward_ad.dual_level():
                pool = ops.mx_pool(forward_ad.make_dual(y, y))
                assert forward_ad.unpack_dual(pool.pooled).tangent is not None
        else:
            with pytest.raises(BackendError, match=r"'sparse' cannot serve torch\.func.*'auto'"):
                grad(lambda y: ops.mx_pool(y).pooled.sum())(y)
    assert ops.mx_pool(y).pooled.shape == (2, 6)  # nothing of it is remembered


SAVERS = {
    ".pt2": lambda m, x, path: torch.export.save(torch.export.export(m, (x,)), path),
    ".ts": lambda m, x, path: torch.jit.trace(m, x, check_trace=False).save(path),
}
LOAD = """
import sys, torch
def shape(path):
    load = torch.jit.load if path.endswith(".ts") else lambda p: torch.export.load(p).module()
    return tuple(load(path)(torch.ones(2, 6, 3, 3)).shape)
plain, ours = sys.argv[1:]
print(shape(plain), "infodisent" in sys.modules)
import infodisent.ops
print(shape(ours))
"""


@pytest.mark.parametrize("suffix", SAVERS)
def test_a_file_says_what_it_needs_and_that_is_true(tmp_path, suffix):
    head, x = InfoDisentHead(6, 3).eval(), torch.ones(2, 6, 3, 3)
    plain, ours = (str(tmp_path / (name + suffix)) for name in ("plain", "ours"))
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"import infodisent\.ops.*use_backend\(.reference.\)"):
            SAVERS[suffix](head, x, ours)
        with warnings.catch_warnings(), backends.use_backend("reference"):
            warnings.filterwarnings("error", message="infodisent")
            SAVERS[suffix](head, x, plain)
    command = [sys.executable, "-W", "ignore", "-c", LOAD, plain, ours]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "(2, 3) False\n(2, 3)\n", done.stderr
