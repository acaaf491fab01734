"""ops.rotation: value, gradient, orthogonality, edge cases; the polynomials it chooses from."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from infodisent import backends, ops, reference
from infodisent.backends.sparse import rotation as sparse_rotation
from infodisent.backends.table import BY_NAME
from infodisent.polynomials import plans as _plans
from infodisent.testing import relative

SIZES = [(1, 1.0), (2, 1.0), (5, 0.5), (33, 1e-13), (64, 0.05), (123, 0.3), (256, 0.02), (255, 2.0)]
ALL_PLANS = [
    pytest.param(plan, id=plan.name.replace(" ", "-"))
    for plan in (
        *_plans.plans(torch.float32),
        *_plans.plans(torch.float32, "half"),
        *_plans.plans(torch.float64),
    )
]


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


def with_norm(a: torch.Tensor, norm: float) -> torch.Tensor:
    """`a` scaled so that ||a - a^T||_2 = norm."""
    return a * (norm / torch.linalg.matrix_norm((a - a.mT).double(), 2)).to(a.dtype)


@pytest.mark.parametrize(("n", "sigma"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient(backend, n, sigma, dtype):
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


@pytest.mark.parametrize("norm", [1e-3, 0.1, 0.49, 1.0, 1.8, 2.9, 4.0, 6.3, 12.0, 25.0])
@pytest.mark.parametrize("kind", ["random", "low rank"])
def test_several_times_more_accurate_than_torch(norm, kind):
    """At every norm where a plan or a squaring begins to serve; U, orthogonality and gradient."""
    n = 128
    a = torch.randn(n, n)
    if kind == "low rank":  # what a few steps of Adam make of A
        a = torch.randn(n, 3).sign() @ torch.randn(3, n).sign() + 0.02 * a
    a, grad = with_norm(a, norm), torch.randn(n, n)
    check = a.double().requires_grad_()
    truth = reference.rotation(check)
    truth.backward(grad.double())

    def errors(function):
        leaf = a.clone().requires_grad_()
        u = function(leaf)
        u.backward(grad)
        u = u.detach().double()
        return (
            (u - truth.detach()).norm().item() / n**0.5,
            (u @ u.mT - torch.eye(n)).norm().item() / n**0.5,
            relative(leaf.grad, check.grad),
        )

    rounding = torch.finfo(torch.float32).eps / 2
    for name, ours, torchs in zip(
        ("U", "U U^T", "dA"), errors(ops.rotation), errors(reference.rotation), strict=True
    ):
        # three times better at least, also at the end of a polynomial's interval, down to where
        # nothing but the rounding of a result is left
        assert ours <= max(torchs / 3, 4 * rounding), name


@pytest.mark.parametrize("plan", ALL_PLANS)
def test_plan_is_as_accurate_as_it_says(plan):
    """The polynomial against e^(iy) with 30 digits; also that it is accurate relative to y."""

    def row(values, basis):
        return mpmath.fsum(v * b for v, b in zip(values, basis, strict=False))

    largest = 0.0
    with mpmath.workdps(30):
        for k in range(1, 201):
            y = mpmath.mpf(k) / 200
            z = mpmath.mpc(0, y)
            basis = [z, z**2, *([z**3, z**6] if plan.cube else [z**4])]
            if plan.q:
                basis.append(row(plan.q, basis) ** 2)
            for index, (left, right) in enumerate(plan.products):
                product = row(left, basis) * row(right, basis)
                if index < len(plan.products) - 1:
                    basis.append(product)
            value = 1 + row(plan.last, basis) + product
            largest = max(largest, float(abs(value - mpmath.exp(z * plan.theta))))
    assert largest <= max(plan.error, 4e-16)
    assert largest >= plan.error / 2 or plan.cube, "the stated error is too pessimistic"


def test_the_cheapest_plan_is_chosen():
    def products(norm, **options):
        number, squarings = _plans.choose(norm, torch.float32, **options)
        return sum(_plans.plans(torch.float32, **options)[number].cost) + 3 * squarings

    assert products(0.0) == products(0.5) == 6
    assert products(1.9) == 7.5
    assert products(3.0) == 9
    assert products(6.4) == 10.5
    assert products(12.8) == 13.5
    assert products(12.8, precision="half") == 10.5
    assert all(
        plan.cost[1] <= 8
        for dtype in (torch.float32, torch.float64)
        for plan in _plans.plans(dtype)
    )
    assert _plans.choose(math.nan, torch.float32) == (3, 0)


@pytest.mark.parametrize("n", [7, 64])
def test_norm_bound_holds(n):
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        a = torch.randn(n, n, generator=g, dtype=torch.float64)
        if seed % 2:
            a[:, 3:] *= 1e-3
        s = a - a.mT
        square, fourth = s @ s, s @ s @ s @ s
        bound = _plans.norm_bound(
            *(
                (k, power.abs().sum(0).max().item(), power.square().sum().item())
                for k, power in ((2, square), (4, fourth))
            )
        )
        norm = torch.linalg.matrix_norm(s, 2).item()
        assert norm <= bound <= norm * n**0.25


def test_zero_is_the_identity_exactly(backend):
    a = torch.zeros(7, 7, requires_grad=True)
    u = ops.rotation(a)
    assert torch.equal(u, torch.eye(7))
    g = torch.randn(7, 7)
    u.backward(g)
    torch.testing.assert_close(a.grad, g - g.mT, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm", [1e-12, 1.0, 1e3, 1e6])
def test_norms(backend, norm):
    a = torch.randn(31, 31, dtype=torch.float64)
    a = a / torch.linalg.matrix_norm(a - a.mT, 2) * norm
    u = ops.rotation(a)
    assert (u @ u.mT - torch.eye(31, dtype=torch.float64)).abs().max() < 1e-13 * max(1, norm)
    assert (u - torch.matrix_exp(a - a.mT)).abs().max() < 1e-13 * max(1, norm)


@pytest.mark.parametrize("norm", [1e-30, 1e-12, 300.0, 1e3])
def test_norms_float32(backend, norm):
    a = with_norm(torch.randn(61, 61), norm)
    leaf = a.clone().requires_grad_()
    u = ops.rotation(leaf)
    u.sum().backward()
    eps = torch.finfo(torch.float32).eps
    # A itself is rounded, by up to eps * norm
    assert (u - reference.rotation(a.double())).abs().max() < 4 * eps * max(1, norm)
    assert (u.double() @ u.double().mT - torch.eye(61)).abs().max() < 4 * eps * max(1, norm)
    assert leaf.grad.isfinite().all()


def test_a_norm_without_digits_is_nan_and_ends(backend):
    a = torch.zeros(6, 6, requires_grad=True)
    with torch.no_grad():
        a[0, 1] = 1e30  # S^4 overflows
    u = ops.rotation(a)
    u.sum().backward()
    assert u.isnan().any()
    assert a.grad.isnan().any()


@pytest.mark.parametrize("scale", [65536.0, 1e-8])
def test_gradient_scale(backend, scale):
    a = torch.randn(64, 64) * 0.1
    g = torch.randn(64, 64)
    grads = []
    for s in (1.0, scale):
        leaf = a.clone().requires_grad_()
        ops.rotation(leaf).backward(g * s)
        grads.append(leaf.grad / s)
    assert relative(grads[1], grads[0]) < 1e-6


def test_more_squarings_than_are_kept(backend):
    a = with_norm(torch.randn(40, 40, dtype=torch.float64), 40.0)
    grad = torch.randn(40, 40, dtype=torch.float64)
    served_by = BY_NAME[backend]
    _, kept, decisions = served_by.rotation(a, "full")
    assert decisions.tolist()[1] > sparse_rotation.CHAIN
    got = served_by.rotation_backward(grad, a, kept, decisions, "full")
    leaf = a.clone().requires_grad_()
    reference.rotation(leaf).backward(grad)
    assert relative(got, leaf.grad) < 1e-11


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_propagates(backend, value):
    a = torch.zeros(4, 4)
    a[1, 2] = value
    leaf = a.requires_grad_()
    u = ops.rotation(leaf)
    assert u.isnan().any()
    u.sum().backward()
    assert leaf.grad.isnan().any()


def test_gradcheck(backend):
    a = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.rotation, (a,))


def test_strides_do_not_matter(backend):
    a, g = torch.randn(50, 50) * 0.1, torch.randn(50, 50)
    plain, turned = a.clone().requires_grad_(), a.mT.contiguous().mT.requires_grad_()
    ops.rotation(plain).backward(g)
    ops.rotation(turned).backward(g.mT.contiguous().mT)
    assert torch.equal(plain.grad, turned.grad)


def test_every_block_that_is_read_was_written(backend, monkeypatch):
    """Memory as it comes from the allocator, with NaN in it."""
    empty, new_empty = torch.empty_like, torch.Tensor.new_empty

    def poisoned(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(math.nan)

    monkeypatch.setattr(torch, "empty_like", poisoned(empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(new_empty))
    for dtype in (torch.float32, torch.float64):
        for norm in (0.0, 0.3, 1.5, 2.5, 5.0, 11.0, 200.0):
            for precision in _plans.PRECISIONS:
                a = with_norm(torch.randn(30, 30, dtype=dtype), norm)
                u, kept, decisions = BY_NAME[backend].rotation(a, precision)
                grad = BY_NAME[backend].rotation_backward(a, a, kept, decisions, precision)
                assert u.isfinite().all()
                assert grad.isfinite().all()


@pytest.mark.parametrize("norm", [0.3, 5.0, 90.0])
def test_capture_reads_nothing_back(monkeypatch, norm):
    """The branch for CUDA graphs, run on the CPU: one fixed sequence, NaN beyond its range."""
    monkeypatch.setattr(sparse_rotation, "_capturing", lambda a: True)
    a = with_norm(torch.randn(40, 40), norm)
    leaf = a.clone().requires_grad_()
    with backends.use_backend("sparse"):
        u = ops.rotation(leaf)
        u.sum().backward()
        assert (u - reference.rotation(a.double())).abs().max() < 1e-6 * max(1, norm)
        assert leaf.grad.isfinite().all()
        assert ops.rotation(a * (150 / norm)).isnan().all()


def test_precision_half():
    a = with_norm(torch.randn(100, 100), 12.0).requires_grad_()
    u = ops.rotation(a, precision="half")
    grad = torch.randn(100, 100)
    u.backward(grad)
    truth = reference.rotation(a.detach().double())
    error = (u - truth).norm() / 10
    assert 1e-6 < error < 3e-4
    check = a.detach().double().requires_grad_()
    reference.rotation(check).backward(grad.double())
    assert relative(a.grad, check.grad) < 1e-3
    with pytest.raises(ValueError, match="precision is 'low', allowed are full, half"):
        ops.rotation(a, precision="low")


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


def test_opcheck_compile_and_double_backward(backend):
    a = (torch.randn(9, 9) * 0.2).requires_grad_()
    # test_aot_dispatch compares every output, and of `kept` only a part is ever written
    torch.library.opcheck(
        torch.ops.infodisent.rotation.default,
        (a, "full"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    compiled = torch.compile(ops.rotation, backend="aot_eager", fullgraph=True)
    grads = []
    for function in (ops.rotation, compiled):
        u = function(a)
        grads.append(torch.autograd.grad(u.square().mul(torch.arange(9.0)).sum(), a)[0])
    assert torch.equal(*grads)
    (g,) = torch.autograd.grad(ops.rotation(a).square().sum() + a.sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.sum().backward()
