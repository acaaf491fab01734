"""When ``auto`` trusts the GPU kernels: the check itself, what it remembers, and what it refuses.

The check runs on a GPU where there is one, else in the interpreter (`test_in_the_interpreter`).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re

import pytest
import torch

from infodisent import backends, ops, reference
from infodisent.backends import selection
from infodisent.backends import selfcheck as _selfcheck
from infodisent.backends.cuda import module as _native_cuda
from infodisent.backends.table import BY_NAME
from infodisent.backends.triton import checks, loading
from infodisent.backends.triton import kernels as triton_kernels
from infodisent.contract import Best, Extremes
from infodisent.testing import WrongResultError, untouched_generators
from tests.kernels import kernel_compile

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
TINY = ((3, 6, 24), (2, 5, 17))
_SEEN = itertools.count()

runs = pytest.mark.skipif(
    not GPU and not INTERPRETED, reason="no GPU; test_in_the_interpreter runs it"
)
host = pytest.mark.skipif(INTERPRETED, reason="needs no kernel")


@runs
@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_right_kernels_pass(dtype):
    said = checks.check_infodisent_head(DEVICE, dtype, TINY, most=2)
    assert "kinds of tiles" in said


@runs
def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        checks.check_infodisent_head(DEVICE, torch.float32, TINY, most=0)
        checks.check_rotation(DEVICE, torch.float32, (17,))


@runs
def test_the_callers_generators_are_left_alone():
    with untouched_generators():
        checks.check_infodisent_head(DEVICE, torch.float32, TINY, most=0)
        checks.check_rotation(DEVICE, torch.float32, (17,))


@runs
@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_right_best_pixels_pass(dtype):
    said = checks.check_similarity_pool(DEVICE, dtype, TINY, most=3)
    assert "kinds of tiles" in said


@runs
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: Best(b.value * 1.01, b.index), "values"),
        (lambda b: Best(b.value, b.index * 0), "places"),
        (lambda b: Best(b.value, b.index - 7), "places"),
    ],
)
def test_wrong_best_pixels_fail(monkeypatch, spoil, message):
    plain = triton_kernels.similarity_pool
    wrong = lambda *a: tuple(map(spoil, plain(*a)))  # noqa: E731
    monkeypatch.setattr(triton_kernels, "similarity_pool", wrong)
    with pytest.raises(WrongResultError, match=message):
        checks.check_similarity_pool(DEVICE, torch.float32, TINY, most=0)


@runs
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda dx, dv: (dx.flip(1), dv), "dX"),
        (lambda dx, dv: (dx, dv * 1.01), "dV"),
        (lambda dx, dv: (dx, dv + 1e-6 * next(_SEEN)), "other bits"),
    ],
)
def test_a_wrong_gradient_of_the_best_pixels_fails(monkeypatch, spoil, message):
    plain = triton_kernels.similarity_pool_backward
    monkeypatch.setattr(
        triton_kernels, "similarity_pool_backward", lambda *a: spoil(*plain(*a))
    )  # fmt: skip
    with pytest.raises(WrongResultError, match=message):
        checks.check_similarity_pool(DEVICE, torch.float32, TINY[1:], most=0)


@runs
@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_right_alignment_passes(dtype):
    assert checks.check_softmax_alignment(DEVICE, dtype, TINY) == "2 sizes"


@runs
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("softmax_alignment", lambda r: r[0].mul_(1.01), "loss"),
        ("softmax_alignment", lambda r: r[1][5].mul_(1.01), "gradient of first"),
        ("softmax_alignment_backward", lambda given: given[5].mul_(1.01), "gradient of second"),
    ],
)
def test_a_wrong_alignment_fails(monkeypatch, name, change, message):
    plain = getattr(triton_kernels, name)

    def wrong(*given):
        result = plain(*given)
        change(given if result is None else result)
        return result

    monkeypatch.setattr(triton_kernels, name, wrong)
    with pytest.raises(WrongResultError, match=message):
        checks.check_softmax_alignment(DEVICE, torch.float32, TINY)


@runs
@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_right_softmax_passes(dtype):
    said = checks.check_softmax_pool(DEVICE, dtype, TINY, most=1)
    assert "kinds of tiles" in said


@runs
@pytest.mark.parametrize(
    ("name", "spoil", "most", "message"),
    [
        ("softmax_pool", lambda r: (Best(r[0].value * 1.01, r[0].index), r[1]), 0, "values"),
        ("softmax_pool", lambda r: (Best(r[0].value, r[0].index * 0), r[1]), 0, "places"),
        ("softmax_pool", lambda r: (Best(r[0].value, r[0].index - 7), r[1]), 1, "places"),
        ("softmax_pool", lambda r: (r[0], r[1] * 1.01), 0, "dX"),
        ("scores_gradient", lambda r: [(part, dw * 1.01) for part, dw in r], 1, "gradient"),
    ],
)
def test_a_wrong_softmax_fails(monkeypatch, name, spoil, most, message):
    from infodisent.kernels import softmax_pool

    plain = getattr(softmax_pool, name)
    monkeypatch.setattr(softmax_pool, name, lambda *a, **k: spoil(plain(*a, **k)))
    with pytest.raises(WrongResultError, match=message):
        checks.check_softmax_pool(DEVICE, torch.float32, () if most else TINY, most=most)


@runs
def test_right_rotation_passes():
    assert "kinds of tiles" in checks.check_rotation(DEVICE, torch.float32, (17,))


@runs
def test_a_wrong_tile_of_the_rotation_is_found(monkeypatch):
    """In a tile that no matrix of the check is large enough to be given."""
    from infodisent.kernels import rotation

    right = rotation.product

    def wrong(a, b, out, *others, **options):
        right(a, b, out, *others, **options)
        if options["chosen"].block_m == 128:
            out[-1, 0] += 0.1

    monkeypatch.setattr(rotation, "product", wrong)
    with pytest.raises(WrongResultError, match="tiles of 128"):
        checks._check_products(DEVICE)


@runs
@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("rotate_pool", lambda p: p._replace(pos=p.pos * 1.01), "values"),
        ("rotate_pool", lambda p: p._replace(pos_index=p.pos_index * 0), "places"),
        ("rotate_pool", lambda p: p._replace(neg_index=p.neg_index - 1), "places"),
        ("rotate_pool_backward", lambda g: (g[0], g[1] * 1.1), "dU"),
        ("rotate_pool_backward", lambda g: (g[0].mT.contiguous().view(g[0].shape), g[1]), "dX"),
        ("infodisent_head", lambda o: (o[0] + 1, *o[1:]), "logits"),
    ],
)
def test_wrong_kernels_fail(monkeypatch, name, spoil, message):
    plain = getattr(triton_kernels, name)
    monkeypatch.setattr(triton_kernels, name, lambda *a: spoil(plain(*a)))
    with pytest.raises(WrongResultError, match=message):
        checks.check_infodisent_head(DEVICE, torch.float32, TINY, most=0)


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    """An empty memory, a machine with a name, and a list of the checks that ran."""
    ran = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(_selfcheck.ENV, raising=False)
    monkeypatch.setattr(_selfcheck, "_verdicts", {})
    monkeypatch.setattr(_selfcheck, "machine", lambda device: "a GPU")
    monkeypatch.setattr(_selfcheck, "pending", lambda device: False)
    monkeypatch.setattr(checks, "CHECKS", {"rotate_pool": lambda device, dtype: ran.append(dtype)})
    return ran


def _ask(dtype=torch.float32):
    return _selfcheck.objection("rotate_pool", torch.device("cpu"), dtype, checks.run)


@host
def test_checked_once_a_machine(verdicts, monkeypatch):
    assert _ask() is None
    assert _ask() is None
    assert verdicts == [torch.float32]
    monkeypatch.setattr(_selfcheck, "_verdicts", {})  # another process
    assert _ask() is None
    assert _ask(torch.bfloat16) is None
    assert verdicts == [torch.float32, torch.bfloat16]
    saved = json.loads(_selfcheck.cache_file().read_text())
    assert saved == {"a GPU": {"rotate_pool float32": "ok", "rotate_pool bfloat16": "ok"}}
    monkeypatch.setattr(_selfcheck, "machine", lambda device: "another GPU")
    assert _ask() is None
    assert len(verdicts) == 3


@host
def test_a_failure_is_remembered_with_its_reason(verdicts, monkeypatch, caplog):
    def wrong(device, dtype):
        verdicts.append(dtype)
        raise WrongResultError("values are off")

    monkeypatch.setitem(checks.CHECKS, "rotate_pool", wrong)
    assert "failed: WrongResultError: values are off" in _ask()
    assert "values are off" in caplog.text
    monkeypatch.setattr(_selfcheck, "_verdicts", {})
    assert "values are off" in _ask()
    assert len(verdicts) == 1


@host
def test_no_memory_is_no_lasting_verdict(verdicts, monkeypatch):
    def full(device, dtype):
        verdicts.append(dtype)
        raise torch.OutOfMemoryError("full")

    monkeypatch.setitem(checks.CHECKS, "rotate_pool", full)
    assert "OutOfMemoryError" in _ask()
    assert "OutOfMemoryError" in _ask()
    assert len(verdicts) == 1
    assert not _selfcheck.cache_file().exists()


@host
def test_what_the_caller_has_switched_on_does_not_matter(verdicts, monkeypatch):
    def check(device, dtype):
        verdicts.append(dtype)
        x = torch.ones(2)
        assert not x.is_inference()
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = torch.ones(2, requires_grad=True)
            leaf.sum().backward()
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32

    monkeypatch.setitem(checks.CHECKS, "rotate_pool", check)
    with torch.inference_mode(), torch.autocast("cpu"):
        assert _ask() is None
    assert len(verdicts) == 1


@host
def test_nothing_is_checked_under_a_tracer_or_transform():
    cpu, seen = torch.device("cpu"), []
    assert not _selfcheck.pending(cpu)
    torch.func.vmap(lambda x: (seen.append(_selfcheck.pending(cpu)), x)[1])(torch.ones(2))
    with torch._subclasses.FakeTensorMode():
        seen.append(_selfcheck.pending(cpu))
    assert seen == [True, True]


@host
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a GPU": 3}', "\x00"])
def test_a_damaged_memory_is_replaced(verdicts, content):
    path = _selfcheck.cache_file()
    path.parent.mkdir()
    path.write_text(content)
    assert _ask() is None
    assert json.loads(path.read_text()) == {"a GPU": {"rotate_pool float32": "ok"}}


@host
def test_a_memory_that_cannot_be_written(verdicts, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(_selfcheck, "write_json", refuse)
    assert _ask() is None
    assert _ask() is None
    assert len(verdicts) == 1


@host
def test_left_out_or_not_possible_now(verdicts, monkeypatch):
    monkeypatch.setattr(_selfcheck, "pending", lambda device: True)
    assert "not checked on this machine yet" in _ask()
    monkeypatch.setattr(_selfcheck, "pending", lambda device: False)
    monkeypatch.setenv(_selfcheck.ENV, "0")
    assert "not checked" in _ask()
    assert not verdicts


@host
def test_auto_takes_what_was_shown_right(verdicts, monkeypatch):
    monkeypatch.setattr(selection, "_resolved", {})
    monkeypatch.setattr(loading, "objection", lambda *_: None)
    x = torch.zeros(1)
    assert backends.select("rotate_pool", x) == "triton"
    monkeypatch.setattr(selection, "_resolved", {})
    monkeypatch.setattr(_selfcheck, "objection", lambda *_: "was never checked")
    assert backends.select("rotate_pool", x) != "triton"
    assert backends.explain("rotate_pool", check=True)["triton"] == "was never checked"
    assert backends.explain("rotate_pool")["triton"] == "ok"  # who asks for it gets it
    with backends.use_backend("triton"):
        assert backends.select("rotate_pool", x) == "triton"


@host
def test_objections():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert "cuda only, not on cpu" in loading.objection("rotation", cpu, torch.float32)
    assert "no Triton kernel for mx_pool" in loading.objection("mx_pool", cuda, torch.float32)
    assert "takes float32, not bfloat16" in loading.objection("rotation", cuda, torch.bfloat16)
    assert "not float64" in loading.objection("rotate_pool", cuda, torch.float64)
    with backends.use_backend("triton"), pytest.raises(backends.BackendError, match="cuda only"):
        backends.select("rotate_pool", torch.zeros(1))


@host
def test_the_cuda_backend(monkeypatch):
    cuda, reason = torch.device("cuda"), backends.explain("rotate_pool", "cuda")["cuda"]
    call = backends.Call("rotate_pool", torch.device("cpu"), torch.float32)
    assert "CUDA module" in reason  # no such GPU here, or no such module
    assert "not float64" in backends.explain("rotate_pool", cuda, torch.float64)["cuda"]
    with backends.use_backend("triton"):
        assert backends.select("mx_pool", torch.zeros(1)) == "sparse"  # it has no such kernel
    assert "no CUDA kernel for mx_pool" in backends.explain("mx_pool", cuda)["cuda"]
    monkeypatch.setattr(_native_cuda, "device_objection", lambda *_: None)
    assert backends.explain("rotate_pool")["cuda"] == "ok"
    assert "who ask for it" in backends.explain("rotate_pool", check=True)["cuda:fp8"]
    assert BY_NAME["cuda:fp8"].gradient(call) == "sparse"
    calls = []

    def kernel(x, u, fp8):
        calls.append(fp8)
        return Extremes(*reference.rotate_pool(x, u, input_fmt="NLC")[1:])

    monkeypatch.setattr(_native_cuda, "objection", lambda *_: None)
    monkeypatch.setattr(_native_cuda, "rotate_pool", kernel)
    x, u = torch.randn(2, 4, 3, 3), torch.randn(4, 4, requires_grad=True)
    for name in ("cuda", "cuda:fp8"):
        with backends.use_backend(name):
            pool = ops.rotate_pool(x, u)
            (du,) = torch.autograd.grad(pool.pooled.sum(), u)
        wanted = reference.rotate_pool(x, u)
        torch.testing.assert_close(pool, wanted)
        torch.testing.assert_close(du, torch.autograd.grad(wanted.pooled.sum(), u)[0])
    assert calls == [False, True]
    monkeypatch.setattr(_native_cuda, "objection", lambda *_: "an odd stride")
    with backends.use_backend("cuda:fp8"), pytest.raises(backends.BackendError, match="odd stride"):
        ops.rotate_pool(x, u)
    assert "infodisent tune" in backends.explain("rotate_pool", check=True)["cuda"]
    assert BY_NAME["cuda"].gradient(call) == "sparse"
    assert BY_NAME["native"].gradient(call) == "native"


@host
def test_another_float64_input_counts(monkeypatch):
    asked = []
    monkeypatch.setattr(selection, "_resolved", {})
    monkeypatch.setattr(loading, "objection", lambda op, device, dtype: asked.append(dtype))
    monkeypatch.setattr(_selfcheck, "objection", lambda *_: "no")
    backends.select("rotate_pool", torch.zeros(1), torch.zeros(1, dtype=torch.float64), None)
    assert asked == [torch.float64]


@pytest.mark.skipif(
    INTERPRETED or GPU or importlib.util.find_spec("triton") is None,
    reason="this is the interpreter, or there is a GPU, or no Triton",
)
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 10
