"""`infodisent fit`: train a head on a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infodisent.cli.images import (
    ImagesArgument,
    MultilabelOption,
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
from infodisent.progress import console


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
    out: OutOption = Path("runs/fit"),
    epochs: EpochsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per training step.")] = 256,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of the weights.")] = 1e-2,
    rotation_lr: Annotated[float, typer.Option(min=0, help="… of the rotation.")] = 3e-3,
    l1: Annotated[
        float,
        typer.Option(min=0, help="Penalty on the weights: larger gives shorter explanations."),
    ] = 0.1,
    nonneg: Annotated[
        str,
        typer.Option(
            help="How the class weights stay >= 0; one of projection, relu, softplus, abs."
        ),
    ] = "projection",
    bias: Annotated[bool, typer.Option(help="Add a bias to every class.")] = False,
    parametrization: ParametrizationOption = "exp",
    train: TrainOption = None,
    val: ValOption = None,
    multilabel: MultilabelOption = False,
    val_fraction: ValFractionOption = None,
    seed: SeedOption = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    extract_batch: Annotated[int, typer.Option(min=1, help="Images per backbone pass.")] = 32,
    feature_dtype: Annotated[
        str, typer.Option(help="Of the stored features; one of float16, bfloat16, float32.")
    ] = "float16",
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
    overwrite: OverwriteOption = False,
) -> None:
    """Train an interpretable head on a folder of images, and compare it with the usual heads.

    Interrupt it whenever you like: the same command goes on where it stopped.

    Example: infodisent fit photos -b resnet50 -o runs/photos
    """
    import torch

    from infodisent.classifier import attach
    from infodisent.training import run as training
    from infodisent.training.fit import FitConfig

    chosen_device = training.pick_device(device)  # before anything that takes time
    images = images_from(
        folder, train, val, val_fraction=val_fraction, seed=seed, multilabel=multilabel
    )
    console.print(
        f"{len(images.items)} images of {len(images.classes)} classes in {images.root}",
        markup=False,
    )
    torch.manual_seed(seed)  # a backbone without weights is the same one when the run goes on
    own = module_from(module)
    if own is None and not pretrained and weights is None:
        console.print("[yellow]the backbone has random weights (--no-pretrained): a test only")
    with warnings_as_lines():
        model = attach(
            backbone if own is None else own,
            len(images.classes),
            pretrained=own is None and pretrained and weights is None,
            nonneg=nonneg,
            bias=bias,
            parametrization=parametrization,
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
    config = FitConfig(
        epochs=epochs, seed=seed, l1=l1, batch_size=batch_size, lr=lr, rotation_lr=rotation_lr
    )
    run = training.fit(
        model,
        images,
        out,
        config,
        batch_size=extract_batch,
        num_workers=workers,
        dtype=feature_dtype,
        overwrite=overwrite,
    )
    print_metrics(run.metrics)
    print_result("model", run.folder / training.MODEL)
    print_result("next", f"infodisent explain IMAGE --run {run.folder}")
