"""What reports on real images share: the sets, their stores, runs in processes of their own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infodisent import demo
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder
from infodisent.data.store import FeatureStore
from infodisent.files import write_json
from infodisent.progress import bar


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--features`` and ``--images``, as `extracted` takes them."""
    parser.add_argument("--features", type=Path, required=True, help="folder of feature stores")
    parser.add_argument("--images", action="append", default=[], metavar="NAME=FOLDER")


def extracted(
    model: InfoDisentClassifier, options: argparse.Namespace, dtype: str = "float16"
) -> dict[str, FeatureStore]:
    """ELPV and the sets that the options name, each with its features; missing ones are made.

    `dtype`: of the stored maps; others than float16 lie in folders of their own.
    """
    sets = {"elpv": demo.solar_cells()}
    sets |= {n: scan_folder(f) for n, f in (i.split("=", 1) for i in options.images)}
    end = "" if dtype == "float16" else f"-{dtype}"
    return {
        n: extract(model, images, options.features / f"{n}{end}", dtype=dtype)
        for n, images in sets.items()
    }


def run_apart(module: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The figures that ``python -m module --one folder ...`` prints as JSON in its last line.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    command = [sys.executable, "-m", module, "--one", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        what = ", ".join([*arguments, folder.name])
        raise RuntimeError(f"{module}, {what}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


class Run(NamedTuple):
    """A run of a report.

    Attributes:
        key: of its figures in the report.
        folder: of the store.
        arguments: further ones of ``--one``.
        about: what stands beside the figures.
    """

    key: str
    folder: Path
    arguments: tuple[str, ...]
    about: dict[str, Any]


def add_runs(
    module: str,
    report: dict[str, Any],
    wanted: Sequence[Run],
    out: Path,
    again: Callable[[dict[str, Any]], bool] = lambda known: False,
) -> None:
    """Make the runs that ``report["runs"]`` lacks; the report is written after each.

    Args:
        module: see `run_apart`.
        report: with what was found before.
        wanted: the runs.
        out: file of the report.
        again: whether a run that is known is made once more.
    """
    with bar(True) as display:
        task = display.add_task("train", total=len(wanted), note="")
        for run in wanted:
            display.update(task, note=run.key)
            known = report["runs"].get(run.key)
            if known is None or again(known):
                figures = run_apart(module, run.folder, *run.arguments)
                report["runs"][run.key] = {**run.about, **figures}
                write_json(out, report)
            display.advance(task)
    write_json(out, report)
