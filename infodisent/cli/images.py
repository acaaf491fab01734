"""Options that say where the labelled images are, and the set they make."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infodisent.cli.options import pair_of

if TYPE_CHECKING:
    from infodisent.data.items import ImageSet
    from infodisent.data.records import Reading

ImagesArgument = Annotated[
    str | None,
    typer.Argument(
        help="FOLDER/<class>/<image>, or with train/ and val/ between them; "
        "or a CSV of image,label[,split][,group]; or tar files (WebDataset); "
        "or hfds/NAME, wds/PATTERN, tfds/NAME.",
        metavar="FOLDER|CSV|TAR|NAME",
    ),
]
TrainOption = Annotated[
    str | None,
    typer.Option("--train", help="Instead of FOLDER: class folders, or a data set, to train on …"),
]
ValOption = Annotated[
    str | None, typer.Option("--val", help="… and the same to hold out for testing.")
]
ReadOption = Annotated[
    list[str] | None,
    typer.Option(
        "--read",
        help="Of a data set: name=value; train, val or split (names of splits), image or label "
        "(names of columns, endings or keys), names (a file of class names); may be given again.",
    ),
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


def reading_from(pairs: list[str] | None) -> Reading:
    """What ``--read`` says.

    Raises:
        ValueError: a pair without ``=``, or a name that is not known.
    """
    from infodisent.data.records import Reading

    return Reading.of(dict(pair_of("--read", pair) for pair in pairs or []))


def images_from(
    folder: str | None,
    train: str | None = None,
    val: str | None = None,
    out: Path | None = None,
    read: list[str] | None = None,
    *,
    val_fraction: float | None = None,
    seed: int = 0,
    multilabel: bool = False,
) -> ImageSet:
    """The images that the options name; their notices are printed.

    `out`: folder of the run, where it is kept what lies where in tar files.

    Raises:
        ValueError: neither or both of FOLDER and --train, --val, or --multilabel without a CSV.
    """
    from infodisent import ranks
    from infodisent.data.images import read_csv, scan_folder
    from infodisent.data.listing import LISTINGS
    from infodisent.data.notices import print_notices
    from infodisent.data.readers import reader_of
    from infodisent.data.tar_index import INDEX

    if (train is None) != (val is None) or (folder is None) == (train is None):
        raise ValueError("fit: pass FOLDER (or a CSV), or both --train DIR and --val DIR")
    reading = reading_from(read)
    path = None if folder is None else Path(folder)
    if path is not None and path.suffix.lower() in LISTINGS and not path.is_dir():
        if reading.given():
            raise ValueError("fit: --read is of data sets; a CSV names its columns itself")
        task = "multilabel" if multilabel else "multiclass"
        images = read_csv(path, val_fraction=val_fraction, seed=seed, task=task)
    elif multilabel:
        raise ValueError("fit: --multilabel needs a CSV of images and labels, got folders")
    else:
        name = folder or train
        # of several processes one downloads a data set, and reads archives
        once = name is not None and reader_of(name) is not None
        with ranks.leader_first() if once else contextlib.nullcontext():
            images = scan_folder(
                folder, train=train, val=val, val_fraction=val_fraction, seed=seed,
                reading=reading, index=out and out / INDEX,
            )  # fmt: skip
    print_notices(images)
    return images
