"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
ParametrizationOption = Annotated[
    str,
    typer.Option(metavar="exp|lie", help="Of the rotation; lie: cheaper steps, another path."),
]
ImagesRootOption = Annotated[
    Path | None,
    typer.Option("--images-root", help="Where the run's images are now, if they were moved."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace results of other images or options.")
]


DTYPES = ("float32", "bfloat16", "float16")
"""Names of the dtypes that the operators' kernels take, as `torch` has them."""


def check_allowed(command: str, name: str, given: list[str], allowed: tuple[str, ...]) -> None:
    """Raise ValueError, naming what is allowed, if one of the values given to an option is not."""
    unknown = [value for value in given if value not in allowed]
    if unknown:
        raise ValueError(f"{command}: {name} is {unknown[0]!r}, allowed here: {', '.join(allowed)}")


def pair_of(option: str, pair: str) -> tuple[str, str]:
    """Both sides of ``name=value``; ValueError where there is no ``=``."""
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise ValueError(f"{option} is {pair!r}, must be name=value")
    return name, value


def pairs_of(option: str, pairs: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; ValueError for one without ``=``."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, value = pair_of(option, pair)
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value  # a word
    return values
