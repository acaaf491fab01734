"""A sheet of prototypes: what chosen channels of a run mean, as one PNG."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from infodisent import ranks
from infodisent.explanations.prototypes import find_prototypes
from infodisent.report.figure import prototypes_figure, save_figure
from infodisent.report.notices import say_lost
from infodisent.report.pictures import Pictures
from infodisent.report.table import check_folder
from infodisent.training.checkpoint import Architecture
from infodisent.training.run import PROTOTYPES, open_run

KEPT = 5
"""Images per channel and side of a sheet, unless another number is asked for."""


def draw_prototypes(
    folder: str | os.PathLike[str],
    channels: str | None = None,
    keep: int = KEPT,
    out: str | os.PathLike[str] | None = None,
    *,
    images_root: str | os.PathLike[str] | None = None,
    module: Architecture | None = None,
    progress: bool = True,
) -> Path:
    """Draw what channels of a run mean; finds the prototypes anew if more are asked for.

    Several processes (`infodisent.ranks`) search together; the leading one draws and writes.

    Args:
        folder: of the run.
        channels: comma-separated channel numbers; default: the two heaviest of every class, at most
            sixteen.
        keep: images per channel and side.
        out: PNG to write; default: in the run, ``prototypes.png``, or with the channels' numbers in
            its name where they are chosen.
        images_root: where the run's images are now, if they were moved.
        module: as for `infodisent.training.run.open_run`.
        progress: show progress bars.

    Raises:
        ValueError: `channels` is not a list of numbers, or one is out of range.
    """
    loaded, prototypes, run = open_run(folder, module=module)
    if channels is None:
        weight = loaded.model.head.class_weights()  # [K, M]
        heaviest = weight.topk(min(2, weight.shape[1]), dim=1).indices.flatten().tolist()
        chosen = list(dict.fromkeys(heaviest))[:16]
    elif re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", channels):
        chosen = list(dict.fromkeys(int(c) for c in channels.split(",")))
    else:
        raise ValueError(f"channels is {channels!r}, expected numbers such as 3,17,200")
    for channel in chosen:
        prototypes.check_channel(channel)
    name = _sheet_name(chosen if channels is not None else None, keep)
    target = Path(out) if out is not None else run.folder / name
    if target.is_dir():
        target /= name
    if target.suffix.lower() not in ("", ".png"):
        raise ValueError(f"prototypes: --out is {target}, it must end in .png")
    check_folder(target.parent, "prototypes")
    keep = min(keep, run.metrics["images"]["train"])
    if keep > prototypes.k:
        prototypes = find_prototypes(loaded.model.head, run.store, k=keep, progress=progress)
        if ranks.leads():
            prototypes.save(run.folder / PROTOTYPES)
    if not ranks.leads():
        return target
    prototypes = prototypes.relocated(run.metrics["images"].get("root", ""), images_root)
    pictures = Pictures(prototypes.transform)
    unit = loaded.model.head.unit
    figure = prototypes_figure(
        prototypes,
        chosen,
        k=keep,
        unit=unit,
        pictures=pictures,
        captions=_captions(loaded.model.head.class_weights().detach(), loaded.classes, chosen),
    )
    save_figure(figure, target)
    say_lost(pictures, progress)
    return target


def _captions(
    weight: Tensor,  # [K, M]
    classes: Sequence[str],
    channels: Sequence[int],
) -> list[str]:
    """For each channel the class that it counts most for, and its weight, if it counts at all."""
    captions = []
    for channel in channels:
        column = weight[:, channel]
        heaviest = int(column.abs().argmax())
        most = float(column[heaviest])
        captions.append(
            f"{classes[heaviest]}\nweight {most:.3f}" if most else "counts for\nno class"
        )
    return captions


def _sheet_name(channels: Sequence[int] | None, keep: int) -> str:
    """The file of a sheet of chosen channels, or of the default ones: each sheet its name."""
    parts = ["prototypes"]
    if channels is not None:
        numbers = "-".join(map(str, channels))
        if len(numbers) > 80:  # too long for a file name: a checksum tells sheets apart
            first = "-".join(map(str, channels[:8]))
            numbers = f"{first}-{zlib.crc32(numbers.encode()):08x}"
        parts.append(numbers)
    if keep != KEPT:
        parts.append(f"k{keep}")
    return "-".join(parts) + ".png"
