"""Options that say how images are read and shown to the network."""

from __future__ import annotations

import re
from typing import Annotated

import typer

_PANEL = "Preprocessing (default: the backbone's own)"

InputSizeOption = Annotated[
    str | None,
    typer.Option(
        help="Image size the network is shown: 224, or HEIGHTxWIDTH.", rich_help_panel=_PANEL
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        help="Of the normalisation, pixels being 0 … 1: 0.5 or 0.485,0.456,0.406.",
        rich_help_panel=_PANEL,
    ),
]
StdOption = Annotated[
    str | None, typer.Option(help="… its standard deviation.", rich_help_panel=_PANEL)
]
InterpolationOption = Annotated[
    str | None,
    typer.Option(
        help="nearest, bilinear, bicubic, box, hamming or lanczos.", rich_help_panel=_PANEL
    ),
]
CropPctOption = Annotated[
    float | None,
    typer.Option(help="Part of the resized side that is kept, 0 … 1.", rich_help_panel=_PANEL),
]
CropModeOption = Annotated[
    str | None,
    typer.Option(
        "--crop-mode",
        "--crop",
        help="center (cuts the rest away), squash or border (show all with --crop-pct 1).",
        rich_help_panel=_PANEL,
    ),
]
IntensityRangeOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        help="LOW HIGH: shown as black and white, where pixels have more than 8 bits; default: "
        "each image's own range.",
        rich_help_panel=_PANEL,
    ),
]
PageOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Of multi-page files, from 0; default: the first.", rich_help_panel=_PANEL
    ),
]


def sizes(text: str | None) -> int | tuple[int, ...] | None:
    """``224``, ``256x128`` or ``256,128`` as `infodisent.attach` takes it."""
    if text is None:
        return None
    parts = re.split(r"[x×,\s]+", text.strip().lower())
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"--input-size is {text!r}, expected 224 or HEIGHTxWIDTH such as 256x128")
    values = tuple(int(part) for part in parts)
    return values[0] if len(values) == 1 else values


def numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """``0.5`` or ``0.485,0.456,0.406`` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        raise ValueError(
            f"--{name} is {text!r}, expected one number or one for each channel: 0.485,0.456,0.406"
        ) from None
