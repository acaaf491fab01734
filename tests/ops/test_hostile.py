"""What torch can hand to an operator beside plain tensors: each is right or refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

from infodisent import InfoDisentHead, ops, reference
from infodisent.backends import BackendError
from infodisent.backends.native import module as _native
from infodisent.nn import Rotation

pytestmark = pytest.mark.usefixtures("backend")

C = 16


def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(C, C))[0].contiguous()


def calls():
    u, w = rotation(), torch.rand(3, C)
    return {
        "rotate_pool": (lambda x: ops.rotate_pool(x, u), lambda x: reference.rotate_pool(x, u)),
        "mx_pool": (ops.mx_pool, reference.mx_pool),
        "infodisent_head": (
            lambda x: ops.infodisent_head(x, u, w, return_pool=True)[1],
            lambda x: reference.infodisent_head(x, u, w, return_pool=True)[1],
        ),
    }


def same(result, wanted):
    for a, b in zip(result, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["rotate_pool", "mx_pool", "infodisent_head"])
def test_default_device_is_not_that_of_the_inputs(name):
    ours, plain = calls()[name]
    x = torch.randn(2, C, 3, 3)
    with torch.device("meta"):
        result = ours(x)
    same(result, plain(x))


def test_default_device_in_backward():
    x, u = torch.randn(2, C, 3, 3, requires_grad=True), rotation().requires_grad_()
    wanted = torch.autograd.grad(reference.rotate_pool(x, u).pooled.sum(), (x, u))
    a = torch.randn(C, C, requires_grad=True)
    true = torch.autograd.grad(reference.rotation(a)[0, 1], a)[0]
    with torch.device("meta"):
        result = torch.autograd.grad(ops.rotate_pool(x, u).pooled.sum(), (x, u))
        d_a = torch.autograd.grad(ops.rotation(a)[0, 1], a)[0]
    same(result, wanted)
    torch.testing.assert_close(d_a, true, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rotate_pool", "mx_pool", "infodisent_head"])
def test_jit_trace_records_the_operator(name):
    ours, plain = calls()[name]
    traced = torch.jit.trace(lambda x: ours(x).pooled, torch.randn(2, C, 3, 3))
    x = torch.randn(2, C, 3, 3)
    torch.testing.assert_close(traced(x), plain(x).pooled)


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_of_the_head():
    head = InfoDisentHead(C, 3).eval()
    with torch.no_grad():
        traced = torch.jit.trace(head, torch.randn(2, C, 3, 3))
        x = torch.randn(2, C, 3, 3)
        torch.testing.assert_close(traced(x), head(x))


@pytest.mark.parametrize("name", ["rotate_pool", "mx_pool", "infodisent_head"])
def test_lazy_signs_and_zeros(name):
    ours, plain = calls()[name]
    negative = torch.randn(2, C, 3, 3, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    same(ours(negative), plain(negative.resolve_neg()))
    same(ours(torch._efficientzerotensor((2, C, 3, 3))), plain(torch.zeros(2, C, 3, 3)))


def test_lazy_sign_of_the_rotation():
    x, u = torch.randn(2, C, 3, 3), torch._neg_view(rotation())
    same(ops.rotate_pool(x, u), reference.rotate_pool(x, u.resolve_neg()))


@pytest.mark.parametrize("name", ["rotate_pool", "mx_pool", "infodisent_head"])
def test_forward_mode_is_refused(name):
    ours, _ = calls()[name]
    x = torch.randn(2, C, 3, 3)
    with pytest.raises(BackendError, match=rf"{name}: .* torch\.func"):
        torch.func.jvp(lambda a: ours(a).pooled, (x,), (torch.ones_like(x),))
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=r"infodisent\.reference"),
    ):
        ours(forward_ad.make_dual(x, torch.ones_like(x)))
    with forward_ad.dual_level():
        ours(x)  # no tangent, nothing to refuse


def test_forward_mode_of_the_rotation_is_refused():
    a = torch.randn(C, C)
    with pytest.raises(BackendError, match=r"rotation: .* torch\.func"):
        torch.func.jvp(ops.rotation, (a,), (torch.ones_like(a),))


@pytest.mark.parametrize("name", ["rotate_pool", "mx_pool", "infodisent_head"])
def test_meta_inputs(name):
    x = torch.empty(2, C, 3, 3, device="meta")
    u, w = torch.empty(C, C, device="meta"), torch.empty(3, C, device="meta")
    args = {"rotate_pool": (x, u), "mx_pool": (x,), "infodisent_head": (x, u, w)}[name]
    result = getattr(ops, name)(*args)
    assert (result if name == "infodisent_head" else result.pooled).device.type == "meta"


def test_a_rotation_at_an_odd_place():
    u = torch.randn(C * C + 1).bfloat16()[1:].view(C, C)
    x = torch.randn(2, C, 3, 3).bfloat16()
    assert u.data_ptr() % 4 == 2
    pool, wanted = ops.rotate_pool(x, u), reference.rotate_pool(x.double(), u.double())
    torch.testing.assert_close(pool.pos.double(), wanted.pos, rtol=1e-5, atol=1e-5)


def test_more_pixels_than_places_can_count():
    x = torch.zeros(1).expand(1, 2**31, 1)
    with pytest.raises(ValueError, match=r"2147483648 pixels, must be below 2\^31"):
        ops.mx_pool(x, input_fmt="NLC")


TINY = """
import re, torch
from infodisent import ops
def memory(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+) kB", file.read())[1]) * 1024
def peak(shape, dtype):
    x, u = torch.randn(shape).to(dtype), torch.eye(shape[1], dtype=dtype)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = memory("VmRSS")
    ops.rotate_pool(x, u)
    return memory("VmHWM") - before - 5 * 4 * shape[0] * shape[1]
peak((2, 8, 2, 2), torch.float32)
cases = ((10**6, 1, 1, 1), torch.float32), ((500_000, 2, 2, 1), torch.bfloat16)
print(max(peak(*case) for case in (*cases, ((1, 1, 2000, 1000), torch.bfloat16))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(_native.objection() is not None, reason="about the native module")
def test_memory_of_tiny_maps(backend):
    """Many images of few numbers: the bound does not depend on how many."""
    if backend != "native":
        pytest.skip("about the native module")
    done = subprocess.run([sys.executable, "-c", TINY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 << 20


@pytest.mark.parametrize("name", ["rotate_pool", "mx_pool", "infodisent_head", "rotation", "lie"])
def test_the_penalty_of_a_gradient_is_refused(name):
    """Its upstream gradient is a constant: what it depends on are the saved inputs alone."""
    x, u, w = torch.randn(2, C, 3, 3), rotation(), torch.rand(3, C)
    leaves = [t.requires_grad_() for t in (x, u, w)]
    lie = Rotation(C, parametrization="lie")
    value, leaf = {
        "rotate_pool": lambda: (ops.rotate_pool(x, u).pooled, x),
        "mx_pool": lambda: (ops.mx_pool(x).pooled, x),
        "infodisent_head": lambda: (ops.infodisent_head(x, u, w), x),
        "rotation": lambda: (ops.rotation(u), u),
        "lie": lambda: (lie(), lie.A),
    }[name]()
    (g,) = torch.autograd.grad(value[0].sum(), leaf, create_graph=True)
    assert g.requires_grad
    with pytest.raises(RuntimeError, match="twice"):
        (value.sum() + g.square().sum()).backward()
    assert all(t.grad is None for t in leaves)
