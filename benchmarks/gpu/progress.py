"""Going through the stages: what is done is kept at once, and what kills a process costs one item.

A worker does the items and writes every row into the report's JSON file, with a note before each
about what it is at. A supervisor watches that file: an item that hangs or takes the process with it
becomes a row that says so, and a new worker goes on with the next.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.stages import Stage
from infodisent.files import read_json, write_json

DONE, OUT_OF_TIME, DEAD = 0, 3, 4
"""How a worker ends: everything is done; time is over; its device takes no more work."""
RESTARTS = 40

Report = dict[str, Any]


def opened(path: Path, about: Report) -> Report:
    """What an earlier run on the same machine and code has, else an empty report.

    A report of another machine, version or code is kept under another name.
    """
    if path.is_file():
        before: Report = read_json(path)
        # a report that is written into a checkout makes another commit of it, not other code
        if _code(before.get("about", {})) == _code(about):
            before.pop("running", None)  # it was interrupted, which is no fault of the item
            return before
        commit = str(before.get("about", {}).get("commit", "before"))
        code = str(before.get("about", {}).get("code", ""))
        # not called .json: it is no report of this machine any more
        path.rename(path.with_name(f"{path.stem}-{commit}-{code}.json.old"))
    return {"about": about, "stages": {}}


def _code(about: Report) -> Report:
    return {name: value for name, value in about.items() if name != "commit"}


def work(
    path: Path,
    machine: Machine,
    stages: Sequence[Stage],
    minutes: int,
    deadline: float,
    written: Callable[[Report], None],
    clock: Callable[[], float] = time.time,
) -> int:
    """Do what is not done yet; how it ended.

    Args:
        path: of the report, which exists.
        machine: what to run on.
        stages: to go through, in their order.
        minutes: the budget that decides which items there are.
        deadline: no item is begun after this time.
        written: is given the report after every stage in which something was done.
        clock: for tests.
    """
    report: Report = read_json(path)
    for stage in stages:
        rows = report["stages"].setdefault(stage.name, {})
        todo = [(name, run) for name, run in stage.items(machine, minutes) if name not in rows]
        for name, run in todo:
            if clock() > deadline:
                print(f"{stage.name}: out of time before {name}", flush=True)
                written(report)
                return OUT_OF_TIME
            running = {"stage": stage.name, "item": name, "since": time.time()}
            report["running"] = {**running, "limit": stage.limit}
            write_json(path, report)
            began = time.monotonic()
            row = _row(run)
            row["seconds"] = round(time.monotonic() - began, 2)
            rows[name] = row
            del report["running"]
            write_json(path, report)
            print(line(stage.name, name, row), flush=True)
            if "error" in row and not machine.alive():
                return DEAD
        if todo:
            written(report)
    return DONE


def _row(run: Callable[[], Report]) -> Report:
    try:
        return run()
    except Exception as error:
        # whatever a kernel or a compiler raises is what the report is about
        lines = str(error).strip().splitlines() or [""]
        return {"ok": False, "error": f"{type(error).__name__}: {lines[0]}", "more": lines[1:12]}


def line(stage: str, name: str, row: Report) -> str:
    """One row in one line."""
    said = "ok" if row["ok"] else "FAILED"
    if "error" in row:
        said += f" {row['error']}"
    if "microseconds" in row:
        times = sorted(row["microseconds"].items(), key=lambda pair: pair[1])
        said += ": " + ", ".join(f"{name} {us:.1f}" for name, us in times) + " us"
    if row.get("mismatches"):
        said += f": {row['mismatches'][0]}"
    return f"{stage}: {name}: {said} ({row['seconds']:.1f} s)"


def supervise(
    command: Sequence[str],
    path: Path,
    poll: float = 0.5,
) -> int:
    """Run workers until one is done; the last one's status.

    Args:
        command: starts a worker.
        path: of the report that it writes.
        poll: seconds between two looks at the report.
    """
    for _ in range(RESTARTS):
        process = subprocess.Popen(command)
        reason = ""
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(poll)
                running = read_json(path).get("running")
                if running and time.time() > running["since"] + running["limit"]:
                    reason = f"stopped after {running['limit']:.0f} s"
                    process.kill()
                    process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        report = read_json(path)
        running = report.pop("running", None)
        if running is None:
            if process.returncode != DEAD:
                return process.returncode
            continue
        reason = reason or f"the process ended with {process.returncode}"
        seconds = round(time.time() - running["since"], 2)
        row = {"ok": False, "error": reason, "seconds": seconds}
        report["stages"].setdefault(running["stage"], {})[running["item"]] = row
        write_json(path, report)
        print(line(running["stage"], running["item"], row), flush=True)
    return DEAD
