"""Everything there is to know about the GPU kernels on one machine, by one command.

    pip install -e . --no-deps --no-build-isolation      # or any other installation
    python -m benchmarks.gpu_report --minutes 10

What is most worth knowing comes first: driver and versions; whole numbers, exactly; every operator
once; random shapes; then times beside eager PyTorch, the bare product, product and reduction,
scattered gradient and product, torch.compile after its search; then ncu, compute-sanitizer and the
GPU tests. ``--minutes`` 1, 10 or 30 decides how much of each there is, and nothing begins after so
many minutes. Every row is written at once, and the same command goes on where it stopped, if
machine, versions and code are the same; with more minutes it adds what they have room for. After
every stage ``<device>.json``, ``.md`` and ``.png`` are written to ``benchmarks/results``. What
hangs or crashes ends its own item. At the end it says which bars hold.

Times are medians of interleaved replays of CUDA graphs by CUDA events. Before each, half a gigabyte
is written, so that nothing is left in L2 and the host is ahead of the device, which is looked at.
Rates are shares of that of ``torch.mm`` on the same map in the same call, at the clocks that are
told beside them. What is wrong is not timed.

``--rehearse`` does all this without a GPU, on tiny maps by the backends for CPUs.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import bars, picture, progress, tables
from benchmarks.gpu.machine import ROOT, Machine, Rehearsal
from benchmarks.gpu.stages import BUDGETS, STAGES, budget
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.files import read_json, write_json, write_text

Report = dict[str, Any]
NAMES = tuple(stage.name for stage in STAGES)


def write_views(report: Report, path: Path) -> None:
    """The Markdown and the picture beside the report's JSON file."""
    write_text(path.with_suffix(".md"), tables.markdown(report))
    picture.plot(report, path.with_suffix(".png"))


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=30, help=f"{BUDGETS}: how much; none begins after it"
    )
    parser.add_argument("--parts", nargs="+", choices=NAMES, default=NAMES, help="these stages")
    parser.add_argument("--commit", help="name of the code, where there is no git")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU; needs --out")
    # of a worker, which the command starts itself
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rehearse and options.out == parser.get_default("out") and not options.worker:
        parser.error("--rehearse measures nothing: say with --out where its files may go")
    return options


def work(options: argparse.Namespace) -> int:
    """In a process of its own: the items that are left."""
    ensure_torchvision()
    torch.backends.cuda.matmul.allow_tf32 = False  # the peers, in float32
    machine = Rehearsal() if options.rehearse else Machine()
    stages = [stage for stage in STAGES if stage.name in options.parts]
    return progress.work(
        options.worker,
        machine,
        stages,
        budget(options.minutes),
        options.deadline,
        lambda report: write_views(report, options.worker),
    )


def main(arguments: list[str] | None = None) -> int:
    """Start workers, and say at the end what holds."""
    options = options_of(arguments)
    if options.worker:
        return work(options)
    deadline = time.time() + 60 * options.minutes
    if not options.rehearse and not torch.cuda.is_available():
        print("gpu_report: there is no CUDA GPU here; nothing was measured", file=sys.stderr)
        return 2
    if importlib.util.find_spec("infodisent.kernels") is None:
        print("gpu_report: install the package first, see --help", file=sys.stderr)
        return 2
    machine = Rehearsal() if options.rehearse else Machine()
    about = machine.about(options.commit)
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = options.out / f"{name}.json"
    write_json(path, progress.opened(path, about))
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--worker", str(path)]
    command += ["--deadline", str(deadline), "--minutes", str(options.minutes)]
    command += ["--parts", *options.parts] + ["--rehearse"] * options.rehearse
    try:
        status = progress.supervise(command, path)
    except KeyboardInterrupt:
        status = 130
    report = read_json(path)
    write_views(report, path)
    bars.shown(report)
    print(path)
    failed = any(not row["ok"] for rows in report["stages"].values() for row in rows.values())
    return status if status not in (progress.DONE, progress.OUT_OF_TIME) else int(failed)


if __name__ == "__main__":
    sys.exit(main())
