"""`infodisent fit`: train a head on a folder of images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from infodisent.cli.images import (
    ImagesArgument,
    MultilabelOption,
    ReadOption,
    TrainOption,
    ValFractionOption,
    ValOption,
    images_from,
)
from infodisent.cli.modules import ModuleOption, module_from, warnings_as_lines
from infodisent.cli.options import (
    EpochsOption,
    OutOption,
    OverwriteOption,
    ParametrizationOption,
    SeedOption,
    pairs_of,
)
from infodisent.cli.preprocessing import (
    CropModeOption,
    CropPctOption,
    InputSizeOption,
    IntensityRangeOption,
    InterpolationOption,
    MeanOption,
    PageOption,
    StdOption,
    numbers,
    sizes,
)
from infodisent.cli.tables import print_metrics, print_result
from infodisent.progress import console, notice


def fit(
    folder: ImagesArgument = None,
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
    module: ModuleOption = None,
    method: Annotated[
        str, typer.Option(help="Of the head; infodisent methods lists them.")
    ] = "infodisent",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", help="Of the method: name=value; may be given again."),
    ] = None,
    out: OutOption = Path("runs/fit"),
    epochs: EpochsOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images per training step; default: 256, with --train-backbone 64."
        ),
    ] = None,
    train_backbone: Annotated[
        bool,
        typer.Option(
            "--train-backbone",
            help="Train the backbone too, on augmented images: slow without a GPU.",
        ),
    ] = False,
    backbone_lr: Annotated[
        float, typer.Option(min=0, help="Its learning rate with --train-backbone.")
    ] = 1e-4,
    view_pairs: Annotated[
        int,
        typer.Option(min=1, help="Stored pairs of augmented copies, for methods that compare two."),
    ] = 2,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            help="Of augmented copies: name=value; rotate, translate, zoom, shear, flip, colour "
            "or shift; may be given again."
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Learning rate of the weights; default: 0.01, more where features are small.",
        ),
    ] = None,
    rotation_lr: Annotated[float, typer.Option(min=0, help="… of the rotation.")] = 3e-3,
    l1: Annotated[
        float,
        typer.Option(min=0, help="Penalty on the weights: larger gives shorter explanations."),
    ] = 0.1,
    class_weights: Annotated[
        str,
        typer.Option(
            help="Of the loss; one of none, balanced (rare classes count more), or a number "
            "a class, with commas."
        ),
    ] = "none",
    sampler: Annotated[
        str,
        typer.Option(help="One of shuffle, balanced (all classes drawn equally often)."),
    ] = "shuffle",
    logit_adjustment: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="0 learns how frequent classes are, 1 treats all alike; default: 1 where the "
            "largest has more than 3 times the images of the smallest, else 0.",
        ),
    ] = None,
    validation: Annotated[
        float,
        typer.Option(help="Part of the training images, in [0, 1), to score every epoch on."),
    ] = 0.0,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after so many epochs without a lower validation loss; keep the best."
        ),
    ] = None,
    amp: Annotated[
        str,
        typer.Option(
            help="Precision of a training step's products; one of none, bf16, fp16. Weights and "
            "losses stay float32; matters most with --train-backbone."
        ),
    ] = "none",
    accumulate: Annotated[
        int,
        typer.Option(
            min=1,
            help="Pass a step's images in so many parts, with as much less memory; the step is "
            "the same.",
        ),
    ] = 1,
    ema: Annotated[
        float,
        typer.Option(
            help="Decay, in [0, 1), of a moving average of the weights, which is what is kept; 0 "
            "for none."
        ),
    ] = 0.0,
    schedule: Annotated[
        str,
        typer.Option(
            help="Of the learning rates; one of method (its own), cosine, linear, constant."
        ),
    ] = "method",
    warmup: Annotated[
        float, typer.Option(help="Part of a stage's steps, in [0, 1), in which the rates rise.")
    ] = 0.0,
    nonneg: Annotated[
        str | None,
        typer.Option(
            help="How the class weights stay >= 0; one of projection, relu, softplus, abs; "
            "default: projection."
        ),
    ] = None,
    bias: Annotated[
        bool | None,
        typer.Option(
            "--bias/--no-bias",
            help="Add a bias to every class; default: only where images have several labels.",
        ),
    ] = None,
    parametrization: ParametrizationOption = "exp",
    train: TrainOption = None,
    val: ValOption = None,
    read: ReadOption = None,
    multilabel: MultilabelOption = False,
    val_fraction: ValFractionOption = None,
    seed: SeedOption = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    extract_batch: Annotated[int, typer.Option(min=1, help="Images per backbone pass.")] = 32,
    feature_dtype: Annotated[
        str, typer.Option(help="Of stored features; one of float16, bfloat16, float32, float8.")
    ] = "float16",
    extract_amp: Annotated[
        str, typer.Option(help="Precision of backbone passes; one of none, bf16, fp16.")
    ] = "none",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Run the backbone through torch.compile.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1 … or mps; default: cuda if present."),
    ] = None,
    input_size: InputSizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    interpolation: InterpolationOption = None,
    crop_pct: CropPctOption = None,
    crop_mode: CropModeOption = None,
    intensity_range: IntensityRangeOption = None,
    page: PageOption = None,
    probe: Annotated[
        bool, typer.Option(help="Compare with a linear probe, which needs memory for all images.")
    ] = True,
    explain: Annotated[
        int, typer.Option(min=0, help="Explain so many held-out images on a page; 0 for none.")
    ] = 0,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="Write every epoch's figures into the run: csv or tensorboard; may be given again."
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="TensorBoard's files in this folder instead.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Profile a few steps: a trace and a table.")
    ] = False,
    features: Annotated[
        Path | None,
        typer.Option(help="Keep the features in this folder, which several runs may share."),
    ] = None,
    original_classes: Annotated[
        Path | None,
        typer.Option(
            help='JSON file {"my class": "name in the original head, column or WordNet id"}, for '
            "classes that it does not know by name."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train an interpretable head on a folder of images, and compare it with the usual heads.

    Interrupt it whenever you like: the same command goes on where it stopped.

    Example: infodisent fit photos -b resnet50 -o runs/photos
    """
    import torch

    from infodisent import ranks
    from infodisent.classifier import attach
    from infodisent.data.augmentation import Augmentation
    from infodisent.files import read_json
    from infodisent.training import run as training
    from infodisent.training.fit import FitConfig
    from infodisent.training.maps import LIVE_BATCH
    from infodisent.training.tracking import check_logs
    from infodisent.training.tracking import tensorboard as tensorboard_callback

    ranks.start()  # where torchrun has started several processes
    # what can be wrong is said before anything that takes time
    chosen_device = training.pick_device(device)
    mapped = None if original_classes is None else read_json(original_classes)
    if mapped is not None and not isinstance(mapped, dict):
        raise ValueError(f"--original-classes: {original_classes} holds no object of class names")
    config = FitConfig(
        epochs=epochs,
        seed=seed,
        l1=l1,
        batch_size=batch_size or (LIVE_BATCH if train_backbone else FitConfig.batch_size),
        lr=lr,
        rotation_lr=rotation_lr,
        backbone_lr=backbone_lr,
        class_weights=_class_weights(class_weights),
        sampler=sampler,
        logit_adjustment=logit_adjustment,
        validation=validation,
        patience=patience,
        amp=amp,
        accumulate=accumulate,
        ema=ema,
        schedule=schedule,
        warmup=warmup,
    )
    check_logs("fit", log or ())
    augmentation = Augmentation.of(pairs_of("--augment", augment or []))
    given: dict[str, Any] = {"nonneg": nonneg, "bias": bias}
    if parametrization != "exp":
        given["parametrization"] = parametrization
    head_options = method_options(method, option or [], given)
    # of several processes one opens a file of events
    callbacks = [tensorboard_callback(tensorboard)] if tensorboard and ranks.leads() else []
    images = images_from(
        folder, train, val, out, read, val_fraction=val_fraction, seed=seed, multilabel=multilabel
    )
    console.print(
        f"{len(images.items)} images of {len(images.classes)} classes in {images.root}",
        markup=False,
    )
    if images.task == "multilabel" and method == "infodisent":
        head_options.setdefault("bias", True)
    torch.manual_seed(seed)  # a backbone without weights is the same one when the run goes on
    own = module_from(module)
    if own is None and not pretrained and weights is None:
        console.print("[yellow]the backbone has random weights (--no-pretrained): a test only")
    with warnings_as_lines():
        model = attach(
            backbone if own is None else own,
            len(images.classes),
            pretrained=own is None and pretrained and weights is None,
            method=method,
            **head_options,
            input_size=sizes(input_size),
            mean=numbers("mean", mean),
            std=numbers("std", std),
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            intensity_range=intensity_range,
            page=page,
        )
    if weights is not None:
        console.print(str(training.load_backbone(model, weights)), markup=False, highlight=False)
    model.to(chosen_device)
    run = training.fit(
        model,
        images,
        out,
        config,
        features=features,
        original_classes=mapped,
        batch_size=extract_batch,
        num_workers=workers,
        dtype=feature_dtype,
        extract_amp=extract_amp,
        compiled=compiled,
        probe=probe,
        view_pairs=view_pairs,
        train_backbone=train_backbone,
        augmentation=augmentation,
        callbacks=callbacks,
        log=tuple(log or ()),
        profile=profile,
        overwrite=overwrite,
    )
    if not ranks.leads():
        return ranks.stop()
    print_metrics(run.metrics)
    for text in run.metrics.get("head_notices", ()):
        notice(text)
    print_result("model", run.folder / training.MODEL)
    print_result("curve", _draw_curve(run.folder, run.metrics))
    if profile:
        print_result("profile", run.folder / "profile")
    if explain:
        from infodisent.report.publish import report_run

        print_result("open", report_run(run, count=explain))
    folder_text = shlex.quote(str(run.folder))
    print_result("next", f"infodisent explain IMAGE --run {folder_text}")
    print_result("or", f"infodisent report --run {folder_text}")
    return ranks.stop()


def method_options(method: str, pairs: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Options of a head: ``name=value`` pairs, and what has options of the command of its own.

    Raises:
        ValueError: no such method, or a pair without ``=``.
        TypeError: an option that the method does not have.
    """
    from infodisent.methods import check_options

    options = {name: value for name, value in given.items() if value is not None}
    options |= pairs_of("--option", pairs)
    check_options(method, options)
    return options


def _class_weights(given: str) -> str | list[float]:
    """The option's value: a word, or numbers with commas."""
    try:
        return [float(number) for number in given.split(",")]
    except ValueError:
        return given


def _draw_curve(folder: Path, metrics: dict[str, Any]) -> Path:
    """Draw the training's course into the run; returns the file."""
    from infodisent.report.curve import training_curve
    from infodisent.report.figure import save_figure

    target = folder / "curve.png"
    save_figure(training_curve(metrics["history"], metrics.get("kept_epoch")), target)
    return target
