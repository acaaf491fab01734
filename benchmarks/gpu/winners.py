"""What a report says about backends, as the package carries it: `infodisent.backends.reported`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infodisent.files import read_json

Report = dict[str, Any]
NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
CHECKS = ("integers", "operators", "random", "sanitizer", "cuda", "tests")
"""Stages that must not fail anywhere for times to count."""
START = "REPORTS: tuple[Reported, ...] = "


def reports(folder: Path) -> dict[str, Report]:
    """The reports of GPUs in a folder, by name of the file; a rehearsal is none."""
    read = {path.name: read_json(path) for path in sorted(folder.glob("*.json"))}
    return {
        name: report
        for name, report in read.items()
        if isinstance(report, dict) and "capability" in report.get("about", {})
    }


def times(report: Report) -> list[tuple[str, int, int, int, dict[str, tuple[float, float]]]]:
    """Dtype, C, P, B, and by backend the microseconds of the forward and of the step.

    Only of maps for which both were measured, channels last, for two backends or more.
    """
    found = []
    stages = report["stages"]
    for name, forward in stages.get("forward", {}).items():
        step = stages.get("backward", {}).get(name, {})
        if not (forward["ok"] and step.get("ok") and forward["layout"] == "NHWC"):
            continue
        both = [
            backend
            for backend in forward["ours"]
            if backend in forward["microseconds"] and backend in step["microseconds"]
        ]
        if len(both) > 1:
            c, h, w = forward["size"]
            us = {b: (forward["microseconds"][b], step["microseconds"][b]) for b in both}
            found.append((NAMES[forward["dtype"]], c, h * w, forward["batch"], us))
    return sorted(found, key=lambda row: row[:4])


def failed(report: Report) -> int:
    """How many items of the checks failed."""
    stages = report["stages"]
    return sum(not row["ok"] for name in CHECKS for row in stages.get(name, {}).values())


def table(found: Mapping[str, Report]) -> str:
    """The value of `REPORTS`, as ruff lays it out."""
    if not found:
        return "()\n"
    lines = ["("]
    for name, report in found.items():
        about = report["about"]
        lines += [
            "    Reported(",
            f'        file="{name}",',
            f'        device="{about["device"]}",',
        ]
        lines += [
            f'        capability="{about["capability"]}",',
            f"        failed={failed(report)},",
        ]
        rows = times(report)
        lines.append("        times=(" if rows else "        times=(),")
        for dtype, c, p, b, us in rows:
            pairs = ", ".join(f'"{n}": ({a!r}, {z!r})' for n, (a, z) in us.items())
            lines.append(f'            ("{dtype}", {c}, {p}, {b}, {{{pairs}}}),')
        lines += ["        ),"] if rows else []
        lines.append("    ),")
    return "\n".join([*lines, ")"]) + "\n"


def module_text(before: str, folder: Path) -> str:
    """The module with what the reports in a folder say."""
    return before[: before.index(START) + len(START)] + table(reports(folder))
