"""Options that say where the labelled images are, and the set they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infodisent.data.items import ImageSet

ImagesArgument = Annotated[
    Path | None,
    typer.Argument(
        help="FOLDER/<class>/<image>, or with train/ and val/ between them; "
        "or a CSV of image,label[,split][,group]; or tar files (WebDataset).",
        metavar="FOLDER|CSV|TAR",
    ),
]
TrainOption = Annotated[
    Path | None, typer.Option("--train", help="Instead of FOLDER: class folders to train on …")
]
ValOption = Annotated[
    Path | None, typer.Option("--val", help="… and class folders to hold out for testing.")
]
MultilabelOption = Annotated[
    bool,
    typer.Option(
        "--multilabel",
        help="Several labels an image: in the CSV, a|b or a column of 0 and 1 for each.",
    ),
]
ValFractionOption = Annotated[
    float | None,
    typer.Option(help="Held-out part of every class, where none is given.  [default: 0.25]"),
]


def images_from(
    folder: Path | None,
    train: Path | None = None,
    val: Path | None = None,
    *,
    val_fraction: float | None = None,
    seed: int = 0,
    multilabel: bool = False,
) -> ImageSet:
    """The images that the options name; their notices are printed.

    Raises:
        ValueError: neither or both of FOLDER and --train, --val, or --multilabel without a CSV.
    """
    from infodisent.data.images import read_csv, scan_folder
    from infodisent.data.listing import LISTINGS
    from infodisent.data.notices import print_notices

    if (train is None) != (val is None) or (folder is None) == (train is None):
        raise ValueError("fit: pass FOLDER (or a CSV), or both --train DIR and --val DIR")
    if folder is not None and folder.suffix.lower() in LISTINGS and not folder.is_dir():
        task = "multilabel" if multilabel else "multiclass"
        images = read_csv(folder, val_fraction=val_fraction, seed=seed, task=task)
    elif multilabel:
        raise ValueError("fit: --multilabel needs a CSV of images and labels, got folders")
    else:
        images = scan_folder(folder, train=train, val=val, val_fraction=val_fraction, seed=seed)
    print_notices(images)
    return images
