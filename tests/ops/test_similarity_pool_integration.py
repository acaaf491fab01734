"""ops.similarity_pool and the rest of torch: errors, opcheck, autocast, compile, export, func."""

from __future__ import annotations

import pytest
import torch

from infodisent import backends, ops
from infodisent.testing import relative

pytestmark = pytest.mark.usefixtures("backend")

SIMILARITIES = ("dot", "cosine", "l2")


def problem(b, c, h, w, m):
    return torch.randn(b, c, h, w), torch.randn(m, c)


BAD = {
    "similarity": ({"similarity": "euclid"}, ValueError, "similarity is 'euclid', allowed are dot"),
    "second": ({"second": "dot"}, ValueError, "second is 'dot', allowed are cosine, l2"),
    "mean": ({"mean": 1}, TypeError, "mean must be a bool"),
    "channels": ({"prototypes": torch.ones(3, 5)}, ValueError, r"must be \(prototypes, 4\)"),
    "dimensions": ({"prototypes": torch.ones(3, 4, 1, 1)}, ValueError, "must be"),
    "none": ({"prototypes": torch.ones(0, 4)}, ValueError, "no prototypes"),
    "integers": ({"prototypes": torch.ones(3, 4).int()}, TypeError, "prototypes is torch.int32"),
    "valid dtype": ({"valid": torch.ones(2, 6)}, TypeError, "must be a torch.bool tensor"),
    "valid shape": ({"valid": torch.ones(2, 5).bool()}, ValueError, r"must be \(2, 6\)"),
    "nothing valid": (
        {"valid": torch.arange(12).view(2, 6) < 6},
        ValueError,
        "no pixel of image 1",
    ),
    "layout": ({"input_fmt": "CHW"}, ValueError, "input_fmt is 'CHW'"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, error, message = BAD[case]
    arguments = {"x": torch.ones(2, 4, 2, 3), "prototypes": torch.ones(3, 4), **change}
    with pytest.raises(error, match=f"similarity_pool: .*{message}"):
        ops.similarity_pool(**arguments)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_opcheck(similarity):
    x, v = (t.requires_grad_() for t in problem(2, 5, 2, 3, 4))
    overload = torch.ops.infodisent.similarity_pool.default
    valid = torch.ones(2, 6, dtype=torch.bool)
    for second in ("", *(s for s in SIMILARITIES if s != similarity)):
        some = valid if second else None
        torch.library.opcheck(overload, (x, v, some, similarity, second, "NCHW", 0))
    x, v = x.detach(), v.detach()
    pool = overload(x, v, None, similarity, "", "NCHW", 0)
    torch.library.opcheck(
        torch.ops.infodisent.similarity_pool_backward.default,
        (pool[0], pool[2], x, v, *pool, similarity, "", "NCHW", 0, True, True),
    )


def test_autocast_leaves_distances_alone():
    x, v = problem(2, 64, 3, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ops.similarity_pool(x, v)
        distance = ops.similarity_pool(x, v, similarity="l2", second="dot", mean=True)
    assert torch.equal(cast.value, ops.similarity_pool(x.bfloat16(), v.bfloat16()).value)
    for a, b in zip(
        distance, ops.similarity_pool(x, v, similarity="l2", second="dot", mean=True), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    x, v = (t.requires_grad_() for t in problem(2, 5, 2, 3, 4))

    def loss(x, v):
        pool = ops.similarity_pool(x, v, similarity="l2", second="cosine", mean=True)
        return (pool.value - pool.second_value * pool.mean).sum()

    wanted = torch.autograd.grad(loss(x, v), (x, v))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(torch.autograd.grad(compiled(x, v), (x, v)), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_export():
    class Head(torch.nn.Module):
        def forward(self, x, v, valid):
            return ops.similarity_pool(x, v, similarity="l2", second="dot", valid=valid)[:4]

    x, v = problem(2, 5, 2, 3, 4)
    valid = torch.rand(2, 6) < 2
    with pytest.warns(UserWarning, match="needs PyTorch alone|operators of this package"):
        program = torch.export.export(Head(), (x, v, valid))
    for a, b in zip(program.module()(x, v, valid), Head()(x, v, valid), strict=True):
        assert torch.equal(a, b)


def test_func_transforms_take_the_formula():
    x, v = problem(3, 5, 2, 3, 4)
    pool = lambda x: ops.similarity_pool(x, v, similarity="l2").value.sum()  # noqa: E731
    with backends.use_backend("auto"):
        got = torch.func.grad(pool)(x)
    x.requires_grad_()
    assert relative(got, torch.autograd.grad(pool(x), x)[0]) < 1e-5


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(tmp_path, dynamo):
    """By the formula, which is plain PyTorch: distances, a second similarity, the mean."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.v = torch.nn.Parameter(torch.randn(4, 5))

        def forward(self, x):
            pool = ops.similarity_pool(x, self.v, similarity="l2", second="cosine", mean=True)
            return pool.value, pool.second_value, pool.mean

    head, x, path = Head().eval(), torch.randn(2, 5, 2, 3), tmp_path / "head.onnx"
    with backends.use_backend("reference"):
        if dynamo:
            torch.onnx.export(head, (x,), path, dynamo=True, verbose=False)
        else:
            torch.onnx.export(head, (x,), path, dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(path)
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for got, wanted in zip(results, head(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted.detach(), atol=1e-5, rtol=1e-5)
