"""Side-by-side timings of the operators and their peers, interleaved, checked before they count.

`infodisent bench` prints the table; ``benchmarks/`` runs the same cases under pytest-benchmark.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from infodisent import ops, reference
from infodisent.backends.native import module as _native
from infodisent.version import __version__

# Feature maps at 224 px: (channels, height, width). Token models are given as NLC.
SHAPES = {
    "resnet34": (512, 7, 7),
    "resnet50": (2048, 7, 7),
    "densenet121": (1024, 7, 7),
    "convnext_tiny": (768, 7, 7),
    "convnext_large": (1536, 7, 7),
    "vit_base_patch16_224": (768, 14, 14),
    "swin_small_patch4_window7_224": (768, 7, 7),
    "maxvit_tiny_tf_224": (512, 7, 7),
    "tf_efficientnet_lite0": (1280, 7, 7),
}
OPS = ("rotation", "mx_pool", "rotate_pool", "infodisent_head", "training_step")
"""The operators, and one whole step of the head's training: rotation, head, and both gradients."""
MODES = ("forward", "forward+backward")
"""What is timed by default; "backward" alone is the third."""
CLASSES = 1000

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One comparison: operator, map size, batch size, what is timed, dtype, device."""

    op: str
    shape: str
    batch: int
    mode: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def inputs(self) -> tuple[Tensor, ...]:
        """Arguments as a training step of the head has them: the map needs no gradient."""
        c, h, w = SHAPES[self.shape]
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


def _pooled(module: Any, op: str) -> Function:
    if op == "mx_pool":
        return lambda x: module.mx_pool(x).pooled
    return lambda x, u: module.rotate_pool(x, u).pooled


def _conv_max_pool(x: Tensor, u: Tensor) -> Tensor:
    y = F.conv2d(x, u[:, :, None, None])
    high = F.adaptive_max_pool2d(F.relu(y), 1)
    return (high - F.adaptive_max_pool2d(F.relu(-y), 1)).flatten(1)


def _gemm_aminmax(x: Tensor, u: Tensor) -> Tensor:
    low, high = torch.matmul(u, x.flatten(2)).aminmax(dim=2)
    return F.relu(high) - F.relu(-low)


class Orthogonal(nn.Module):
    """`torch.nn.utils.parametrizations.orthogonal` as a function of its parameter."""

    def __init__(self, a: Tensor, method: str) -> None:
        super().__init__()
        layer = nn.Linear(len(a), len(a), bias=False, device=a.device)
        self.layer = nn.utils.parametrizations.orthogonal(layer, orthogonal_map=method)
        if method != "householder":  # which has no matrix of that meaning
            # it starts at zero, where an exponential costs nothing: give it our norm, since it
            # takes the lower triangle L of its parameter to L - L^T
            with torch.no_grad():
                self.layer.parametrizations.weight.original.copy_(a - a.mT)  # type: ignore[union-attr,operator]

    def forward(self, _: Tensor) -> Tensor:
        """The orthogonal matrix of its own parameter; the argument makes it one of the peers."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight


class _ProductAlone(torch.autograd.Function):
    """The flat matrix products that rotate_pool contains, on rows laid out beforehand.

    Forward ``X U^T``, backward the dense ``dY^T X``; both read the same rows.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return torch.mm(rows, u.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, torch.mm(grad.mT, ctx.saved_tensors[0])


def _product_alone() -> Function:
    laid_out: list[Tensor] = []

    def product(x: Tensor, u: Tensor) -> Tensor:
        if not laid_out:
            laid_out.append(x.flatten(2).mT.reshape(-1, x.shape[1]).contiguous())
        result: Tensor = _ProductAlone.apply(laid_out[0], u)
        return result

    return product


def _training_step(module: Any) -> Function:
    return lambda x, a, weight: module.infodisent_head(x, module.rotation(a), weight)


def peers(case: Case) -> dict[str, Function]:
    """The implementations to compare, ours first; those that do not compute the same are marked."""
    if case.op == "rotation":
        (a,) = case.inputs()
        found: dict[str, Function] = {
            "infodisent": ops.rotation,
            "torch.matrix_exp": reference.rotation,
        }
        for method in ("matrix_exp", "cayley", "householder"):
            found[f"orthogonal({method})*"] = Orthogonal(a.detach(), method)
        return found
    if case.op == "infodisent_head":
        eager: Function = reference.infodisent_head  # type: ignore[assignment]
        ours: Function = ops.infodisent_head  # type: ignore[assignment]
        return {"infodisent": ours, "eager": eager, "torch.compile": torch.compile(eager)}
    if case.op == "training_step":
        return {
            "infodisent": _training_step(ops),
            "eager, torch.matrix_exp": _training_step(reference),
        }
    eager = _pooled(reference, case.op)
    found = {
        "infodisent": _pooled(ops, case.op),
        "eager": eager,
    }
    if case.mode != "backward":  # what it compiles cannot be run backward twice
        found["torch.compile"] = torch.compile(eager)
    if case.op == "rotate_pool":
        found["conv2d + max-pool"] = _conv_max_pool
        found["GEMM + aminmax"] = _gemm_aminmax
        if case.mode != "forward+backward":
            found["GEMM alone†"] = _product_alone()
    return found


def check(case: Case, functions: dict[str, Function]) -> dict[str, float]:
    """Relative error of every implementation against float64; raises where it is no rounding.

    Raises:
        AssertionError: an implementation computes something else. Names marked * are only
            checked for orthogonality, since they are other maps of another parameter; those marked
            † are a part of the work and not checked.
    """
    inputs = case.inputs()
    wide = [t.detach().double() for t in inputs]
    truth = (
        reference.rotation(*wide)
        if case.op == "rotation"
        else reference.infodisent_head(*wide)  # type: ignore[arg-type]
        if case.op == "infodisent_head"
        else _training_step(reference)(*wide)
        if case.op == "training_step"
        else _pooled(reference, case.op)(*wide)
    )
    assert isinstance(truth, Tensor)
    bound = 1e-4 if case.dtype == torch.float32 else 3e-2
    errors = {}
    for name, function in functions.items():
        if name.endswith("†"):
            continue
        with torch.no_grad():
            out = function(*inputs).double()
        if name.endswith("*"):
            out, wanted = out @ out.mT, torch.eye(len(out), dtype=out.dtype, device=out.device)
        else:
            wanted = truth
        errors[name] = ((out - wanted).norm() / wanted.norm()).item()
        assert errors[name] < bound, f"{case}: {name} is off by {errors[name]:.1e}"
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


def compare(case: Case, rounds: int = 7) -> dict[str, Any]:
    """Check, warm up, then time all implementations in turn; medians in milliseconds."""
    functions = peers(case)
    errors = check(case, functions)
    runners = {name: runner(case, f) for name, f in functions.items()}
    synchronise = torch.cuda.synchronize if case.device == "cuda" else (lambda: None)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run()
    for _ in range(rounds):
        for name, run in runners.items():
            synchronise()
            start = time.perf_counter()
            run()
            synchronise()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t) * 1e3 for name, t in times.items()}
    return {
        "op": case.op,
        "shape": case.shape,
        "size": list(SHAPES[case.shape]),
        "batch": case.batch,
        "mode": case.mode,
        "dtype": str(case.dtype).removeprefix("torch."),
        "milliseconds": {name: round(ms, 4) for name, ms in medians.items()},
        "speedup": {name: round(ms / medians["infodisent"], 3) for name, ms in medians.items()},
        "error": errors,
    }


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "infodisent": __version__,
        "native": _native.describe(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            model = next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


def cases(
    op_names: Sequence[str] = OPS,
    shapes: Sequence[str] = tuple(SHAPES),
    batch: int = 16,
    modes: Sequence[str] = MODES,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Case]:
    """All combinations; maps of equal size are timed once, and the rotation has no batch."""
    found: dict[tuple[object, ...], Case] = {}
    for op in op_names:
        for shape in shapes:
            for mode in modes if op != "training_step" else ("forward+backward",):
                size = SHAPES[shape][0] if op == "rotation" else SHAPES[shape]
                case = Case(op, shape, batch, mode, dtype, device)
                found.setdefault((op, size, mode), case)
    return list(found.values())
