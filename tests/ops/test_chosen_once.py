"""The backend is chosen at forward and kept for backward, whatever is in force there."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from infodisent import backends, ops
from infodisent.backends.native import module
from infodisent.backends.table import BY_NAME

KERNELS = ("native", "sparse")
built = pytest.mark.skipif(module.objection() is not None, reason=module.objection() or "built")
pairs = pytest.mark.parametrize(
    ("chosen", "later"),
    [("native", "sparse"), ("sparse", "native"), ("sparse", "reference"), ("native", "auto")],
)
BACKWARD = {
    "rotation": "rotation_backward",
    "mx_pool": "mx_pool_backward",
    "rotate_pool": "rotate_pool_backward",
    "similarity_pool": "similarity_pool_backward",
    "infodisent_head": "rotate_pool_backward",
    "softmax_pool": "softmax_pool_backward",
    "softmax_alignment": "softmax_alignment_backward",
}
pytestmark = built


def call(op: str, leaf: torch.Tensor) -> torch.Tensor:
    """The operator as a function of one matrix [6, 6] that gets a gradient."""
    x = torch.linspace(-1, 1, 2 * 6 * 9, dtype=leaf.dtype).view(2, 6, 3, 3)
    if op == "rotation":
        return ops.rotation(leaf)
    if op == "mx_pool":
        return ops.mx_pool(torch.einsum("ck,bkhw->bchw", leaf, x)).pooled
    if op == "rotate_pool":
        return ops.rotate_pool(x, leaf).pooled
    if op == "similarity_pool":
        return ops.similarity_pool(x, leaf, similarity="l2").value
    if op == "softmax_pool":
        return ops.softmax_pool(x, leaf).value
    if op == "softmax_alignment":
        return ops.softmax_alignment(torch.einsum("ck,bkhw->bchw", leaf, x), x)
    return ops.infodisent_head(x, leaf, leaf[:4].detach() + 0.5)


@pytest.fixture
def ran(monkeypatch):
    """Names of the backends whose gradient kernels run, in order."""
    names: list[str] = []
    for name in KERNELS:
        backend = BY_NAME[name]
        for method in set(BACKWARD.values()):
            plain = getattr(backend, method)
            monkeypatch.setattr(
                backend, method, lambda *a, _f=plain, _n=name: (names.append(_n), _f(*a))[1]
            )
    return names


@pytest.fixture
def leaf():
    return torch.randn(6, 6, requires_grad=True)


@pairs
@pytest.mark.parametrize("op", ops.OPERATORS)
def test_backward_outside_of_the_block(op, chosen, later, ran, leaf):
    with backends.use_backend(chosen):
        y = call(op, leaf)
    with backends.use_backend(later):
        y.sum().backward()
    assert ran == [chosen]
    (wanted,) = torch.autograd.grad(reference_value(op, leaf).sum(), leaf)
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-4, atol=1e-5)


def reference_value(op: str, leaf: torch.Tensor) -> torch.Tensor:
    with backends.use_backend("reference"):
        return call(op, leaf)


@pairs
@pytest.mark.parametrize("op", ops.OPERATORS)
def test_compiled(op, chosen, later, ran, leaf):
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with backends.use_backend(chosen):
        y = compiled(op, leaf)
    with backends.use_backend(later):
        y.sum().backward()
    assert ran == [chosen]
    ran.clear()
    if later in KERNELS:  # the choice is guarded: another one compiles anew
        with backends.use_backend(later):
            y = compiled(op, leaf)
        with backends.use_backend(chosen):
            y.sum().backward()
        assert ran == [later]


@pytest.mark.parametrize(("chosen", "later"), [("native", "sparse"), ("sparse", "native")])
@pytest.mark.parametrize("op", ops.OPERATORS)
def test_checkpointed(op, chosen, later, ran, leaf):
    """What is computed again does not change whose gradient runs."""
    with backends.use_backend(chosen):
        y = checkpoint(call, op, leaf, use_reentrant=False)
    with backends.use_backend(later):
        y.sum().backward()
    assert ran == [chosen]


@pytest.mark.parametrize("later", ["reference", "native"])
@pytest.mark.parametrize("op", ops.OPERATORS)
def test_checkpoint_contexts(op, later, ran, leaf, monkeypatch):
    """With them it is computed again by the same backend, also where others keep other tensors."""
    forward: list[str] = []
    for name in KERNELS:
        stem = "rotate_pool" if op == "infodisent_head" else op
        plain = getattr(BY_NAME[name], stem)
        monkeypatch.setattr(
            BY_NAME[name], stem, lambda *a, _f=plain, _n=name: (forward.append(_n), _f(*a))[1]
        )
    with backends.use_backend("sparse"):
        y = checkpoint(call, op, leaf, use_reentrant=False, context_fn=backends.checkpoint_contexts)
    with backends.use_backend(later):
        y.sum().backward()
    assert forward == ["sparse", "sparse"]
    assert ran == ["sparse"]


@pytest.mark.parametrize("op", ops.OPERATORS)
def test_in_another_thread(op, ran, leaf):
    values: list[torch.Tensor] = []

    def forward() -> None:
        values.append(call(op, leaf))

    with backends.use_backend("sparse"):
        thread = threading.Thread(target=forward)
        thread.start()
        thread.join()
    with backends.use_backend("native"):
        thread = threading.Thread(target=lambda: values[0].sum().backward())
        thread.start()
        thread.join()
    assert ran == ["sparse"]
    assert leaf.grad is not None


@pytest.mark.parametrize("op", ["rotation", "rotate_pool"])
def test_exported_programs_ask_where_they_run(op):
    """An artefact is for other machines too: only an explicit choice is written into it."""

    class Module(torch.nn.Module):
        def forward(self, leaf: torch.Tensor) -> torch.Tensor:
            return call(op, leaf)

    example = (torch.randn(6, 6),)
    for choice in ("auto", "sparse"):
        with backends.use_backend(choice):
            program = torch.export.export(Module(), example)
        nodes = [n for n in program.graph.nodes if f"infodisent.{op}" in str(n.target)]
        assert len(nodes) == 1
        written = [a for a in nodes[0].args if isinstance(a, str) and a in backends.NAMES]
        assert written in ([], ["auto"]) if choice == "auto" else written == [choice]
        with backends.use_backend("sparse"):
            torch.testing.assert_close(program.module()(*example), call(op, *example))


def test_precision_of_a_backend():
    with backends.use_backend("cuda", precision="fp8"):
        assert backends.get_backend() == "cuda:fp8"
    with backends.use_backend("cuda_fp8"):  # its name in version 0.1
        assert backends.get_backend() == "cuda:fp8"
    answers = backends.explain("rotation")
    assert answers["cuda_fp8"] == answers["cuda:fp8"]
    assert "cuda_fp8" not in list(answers)
    with pytest.raises(ValueError, match="'native:fp8', allowed are auto, cuda, cuda:fp8"):
        backends.set_backend("native", precision="fp8")
    assert backends.get_backend() == "auto"
