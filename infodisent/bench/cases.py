"""Side-by-side timings of the operators and their peers, interleaved, checked before they count.

`infodisent bench` prints the table; ``benchmarks/`` runs the same cases under pytest-benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops, reference
from infodisent.bench import peers as ways
from infodisent.bench import pools
from infodisent.bench.labels import served_by
from infodisent.bench.machine import machine
from infodisent.bench.peers import Function
from infodisent.bench.shapes import POOLS, SHAPES, shape_size
from infodisent.bench.timing import Clock, host_clock, medians
from infodisent.testing import check_close

__all__ = [
    "MODES",
    "OPS",
    "POOLS",
    "SHAPES",
    "Case",
    "cases",
    "check",
    "compare",
    "machine",
    "peers",
    "runner",
    "shape_size",
]

OPS = ("rotation", "mx_pool", "rotate_pool", *pools.OPS, "infodisent_head", "training_step")
"""The operators, and one whole step of the head's training: rotation, head, and both gradients."""
MODES = ("forward", "forward+backward")
"""What is timed by default; "backward" alone is the third."""
CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """One comparison: operator, map size, batch size, what is timed, dtype, device."""

    op: str
    shape: str
    batch: int
    mode: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def size(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        if self.op in pools.OPS:
            _, _, _, _, c, h, w = POOLS[self.shape]
            return c, h, w
        return shape_size(self.shape)[0]

    def inputs(self) -> tuple[Tensor, ...]:
        """Arguments as a training step of the head has them: the map needs no gradient.

        Those of pools of prototypes are `pools.inputs`.
        """
        if self.op in pools.OPS:
            return pools.inputs(POOLS[self.shape], self.batch, self.dtype, self.device)
        c, h, w = self.size
        g = torch.Generator().manual_seed(0)
        kind = {"dtype": self.dtype, "device": self.device}
        a = (torch.randn(c, c, generator=g) * 0.01).to(self.device)
        if self.op == "rotation":
            return (a.requires_grad_(),)
        x = torch.randn(self.batch, c, h, w, generator=g).to(**kind)  # type: ignore[call-overload]
        if self.op == "mx_pool":
            return (x.requires_grad_(),)
        u = a if self.op == "training_step" else ops.rotation(a).to(self.dtype)
        u.requires_grad_()
        if self.op == "rotate_pool":
            return x, u
        weight = torch.randn(CLASSES, c, generator=g).to(**kind)  # type: ignore[call-overload]
        return x, u, weight.requires_grad_()


def peers(case: Case) -> dict[str, Function]:
    """The implementations to compare, ours first; those that do not compute the same are marked."""
    compared: dict[str, Function]
    if case.op in pools.OPS:
        return pools.peers(POOLS[case.shape], case.mode)
    if case.op == "rotation":
        (a,) = case.inputs()
        compared = {"infodisent": ops.rotation, "torch.matrix_exp": reference.rotation}
        for method in ("matrix_exp", "cayley", "householder"):
            compared[f"orthogonal({method})*"] = ways.Orthogonal(a.detach(), method)
        return compared
    ours, eager = _of(ops, case.op), _of(reference, case.op)
    if case.op == "training_step":
        return {"infodisent": ours, "eager, torch.matrix_exp": eager}
    compared = {"infodisent": ours, "eager": eager}
    if case.mode != "backward":  # what it compiles cannot be run backward twice
        compared["torch.compile"] = torch.compile(eager)
    if case.op == "rotate_pool":
        compared["conv2d + max-pool"] = ways.conv_max_pool
        compared["GEMM + aminmax"] = ways.product_aminmax
        if case.mode != "forward+backward":
            compared["GEMM alone†"] = ways.product_alone()
    return compared


def _of(module: Any, op: str) -> Function:
    """An operator of `infodisent.ops` or `infodisent.reference` that returns one tensor."""
    if op == "training_step":
        return ways.training_step(module)
    function: Function = getattr(module, op)
    if op in ("mx_pool", "rotate_pool"):
        return lambda *inputs: function(*inputs).pooled  # type: ignore[attr-defined,no-any-return]
    return function


def check(case: Case, functions: dict[str, Function]) -> dict[str, float]:
    """Relative error of every implementation against float64; raises where it is no rounding.

    Raises:
        WrongResultError: an implementation computes something else. Names marked * are only
            checked for orthogonality, since they are other maps of another parameter; those marked
            † are a part of the work and not checked.
    """
    inputs = case.inputs()
    if case.op in pools.OPS:
        return pools.check(str(case), POOLS[case.shape], inputs, functions, case.mode)
    truth = _of(reference, case.op)(*(t.detach().double() for t in inputs))
    bound = 1e-4 if case.dtype == torch.float32 else 3e-2
    errors = {}
    for name, function in functions.items():
        if name.endswith("†"):
            continue
        with torch.no_grad():
            out = function(*inputs).double()
        wanted = truth
        if name.endswith("*"):
            out, wanted = out @ out.mT, torch.eye(len(out), dtype=out.dtype, device=out.device)
        errors[name] = check_close(out, wanted, bound, f"{case}: {name}")
    return errors


def runner(case: Case, function: Function) -> Callable[[], None]:
    """A function of no arguments that does the timed work once."""
    inputs = case.inputs()
    if case.mode == "forward":

        def forward() -> None:
            with torch.no_grad():
                function(*inputs)

        return forward
    with torch.no_grad():
        grad = torch.randn_like(function(*inputs))
    leaves = [t for t in inputs if t.requires_grad]
    if isinstance(function, nn.Module):
        leaves = list(function.parameters())
    if case.mode == "backward":
        out = function(*inputs)

        def backward() -> None:
            torch.autograd.grad(out, leaves, grad, retain_graph=True)

        return backward

    def both() -> None:
        torch.autograd.grad(function(*inputs), leaves, grad)

    return both


def compare(case: Case, rounds: int = 7, clock: Clock | None = None) -> dict[str, Any]:
    """Check, warm up, then time all implementations in turn; medians in milliseconds."""
    functions = peers(case)
    errors = check(case, functions)
    runners = {name: runner(case, f) for name, f in functions.items()}
    served = served_by(runner(case, functions["infodisent"]))
    seconds = medians(runners, rounds, clock or host_clock(case.device))
    milliseconds = {name: value * 1e3 for name, value in seconds.items()}
    ours = milliseconds["infodisent"]
    return {
        "op": case.op,
        "shape": case.shape,
        "size": list(case.size),
        "batch": case.batch,
        "mode": case.mode,
        "dtype": str(case.dtype).removeprefix("torch."),
        "served by": list(served),
        "milliseconds": {name: round(ms, 4) for name, ms in milliseconds.items()},
        "speedup": {name: round(ms / ours, 3) for name, ms in milliseconds.items()},
        "error": errors,
    }


def cases(
    op_names: Sequence[str] = OPS,
    shapes: Sequence[str] = (*SHAPES, *POOLS),
    batch: int = 16,
    modes: Sequence[str] = MODES,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Case]:
    """All combinations; maps of equal size are timed once, and the rotation has no batch.

    Shapes are names of `SHAPES` or sizes, see `shape_size`; one with a batch has that and not
    `batch`. Names of `POOLS` are shapes of the operator that they are a case of, and of no other.

    Raises:
        ValueError: an operator without a shape of its own among them, or an unknown shape.
    """
    distinct: dict[tuple[object, ...], Case] = {}
    for op in op_names:
        own = pools.names(op) if op in pools.OPS else [s for s in shapes if s not in POOLS]
        chosen = [shape for shape in shapes if shape in own]
        if shapes and not chosen:
            allowed = ", ".join(own) if own else f"{', '.join(SHAPES)}; or sizes of your own"
            raise ValueError(f"bench: no shape of {op} among {', '.join(shapes)}: {allowed}")
        for shape in chosen:
            for mode in modes if op != "training_step" else ("forward+backward",):
                if op in pools.OPS:
                    made = Case(op, shape, POOLS[shape].batch, mode, dtype, device)
                    distinct[(op, shape, mode)] = made
                    continue
                size, images = shape_size(shape)
                case = Case(op, shape, images or batch, mode, dtype, device)
                alike = size[:1] if op == "rotation" else (*size, case.batch)
                distinct.setdefault((op, alike, mode), case)
    return list(distinct.values())
