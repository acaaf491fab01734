"""ops.rotation: value, gradient, orthogonality, edge cases."""

from __future__ import annotations

import pytest
import torch

from infodisent import ops, reference
from tests.conftest import relative

SIZES = [(1, 1.0), (2, 1.0), (5, 0.5), (33, 1e-13), (64, 0.05), (123, 0.3), (256, 0.02), (255, 2.0)]


def skew_series(grad: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """dA by the commutator series of the exponential's adjoint: independent of the product rules.

    With N = skew(G U^T): Sbar = sum_k (-1)^k / (k+1)! ad_S^k(N), ad_S(N) = S N - N S.
    """
    s = a - a.mT
    n = grad @ torch.matrix_exp(s).mT
    term = (n - n.mT) / 2
    total = term.clone()
    for k in range(1, 400):
        term = -(s @ term - term @ s) / (k + 1)
        total += term
        if term.norm() < 1e-18 * total.norm():
            break
    return total - total.mT


@pytest.mark.parametrize(("n", "sigma"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient(n, sigma, dtype):
    a64 = torch.randn(n, n, dtype=torch.float64) * sigma
    grad64 = torch.randn(n, n, dtype=torch.float64)
    truth = reference.rotation(a64)
    a = a64.to(dtype).clone().requires_grad_()
    u = ops.rotation(a)
    u.backward(grad64.to(dtype))
    eager = reference.rotation(a64.to(dtype))
    eps = torch.finfo(dtype).eps
    # no larger than eager's error, plus rounding: 16 ulp of entries that are at most 1
    assert (u - truth).abs().max() <= 2 * (eager - truth).abs().max() + 16 * eps * n**0.5
    identity = torch.eye(n, dtype=torch.float64)
    assert (u.double() @ u.double().mT - identity).abs().max() <= 20 * eps * n**0.5
    assert torch.linalg.det(u.detach().double()) == pytest.approx(1, abs=1e-2)
    if n == 1:
        assert a.grad.abs().max() == 0
        return
    check = a64.clone().requires_grad_()
    reference.rotation(check).backward(grad64)
    assert relative(a.grad, check.grad) <= (1e-5 if dtype == torch.float32 else 1e-12)
    if sigma * n**0.5 < 10:  # the alternating series loses all digits at large norms
        assert relative(a.grad, skew_series(grad64, a64)) <= (
            1e-5 if dtype == torch.float32 else 1e-10
        )


def test_zero_is_the_identity():
    a = torch.zeros(7, 7, requires_grad=True)
    u = ops.rotation(a)
    assert torch.allclose(u, torch.eye(7), atol=1e-6)
    g = torch.randn(7, 7)
    u.backward(g)
    assert torch.allclose(a.grad, g - g.mT, atol=1e-5)


@pytest.mark.parametrize("norm", [1e-12, 1.0, 1e3, 1e6])
def test_norms(norm):
    a = torch.randn(31, 31, dtype=torch.float64)
    a = a / torch.linalg.matrix_norm(a - a.mT, 2) * norm
    u = ops.rotation(a)
    assert (u @ u.mT - torch.eye(31, dtype=torch.float64)).abs().max() < 1e-13 * max(1, norm)
    assert (u - torch.matrix_exp(a - a.mT)).abs().max() < 1e-13 * max(1, norm)


@pytest.mark.parametrize("scale", [65536.0, 1e-8])
def test_gradient_scale(scale):
    a = torch.randn(64, 64) * 0.1
    g = torch.randn(64, 64)
    grads = []
    for s in (1.0, scale):
        leaf = a.clone().requires_grad_()
        ops.rotation(leaf).backward(g * s)
        grads.append(leaf.grad / s)
    assert relative(grads[1], grads[0]) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_propagates(value):
    a = torch.zeros(4, 4)
    a[1, 2] = value
    assert ops.rotation(a).isnan().any()


def test_gradcheck():
    a = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.rotation, (a,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_float32_rounded(dtype):
    a = (torch.randn(20, 20) * 0.3).to(dtype).requires_grad_()
    u = ops.rotation(a)
    assert u.dtype == dtype
    assert torch.equal(u, ops.rotation(a.detach().float()).to(dtype))
    u.sum().backward()
    assert a.grad.dtype == dtype


def test_bad_input():
    with pytest.raises(ValueError, match=r"A is \(3, 4\)"):
        ops.rotation(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="no channels"):
        ops.rotation(torch.zeros(0, 0))
    with pytest.raises(TypeError, match="int64"):
        ops.rotation(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="list"):
        ops.rotation([[0.0]])


def test_opcheck_and_double_backward():
    a = (torch.randn(9, 9) * 0.2).requires_grad_()
    torch.library.opcheck(torch.ops.infodisent.rotation.default, (a,))
    (g,) = torch.autograd.grad(ops.rotation(a).square().sum() + a.sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.sum().backward()
