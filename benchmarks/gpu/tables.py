"""The GPU report in Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bars import verdicts
from benchmarks.gpu.cases import PARTS, PRODUCT
from benchmarks.gpu.stages import STAGES

Report = dict[str, Any]
Row = dict[str, Any]


def markdown(report: Report) -> str:
    """Machine, bars, stages, failures, and the times: ours in microseconds, others as multiples."""
    about = report["about"]
    lines = [f"# {about['device']}", ""]
    lines += [", ".join(f"{k} {v}" for k, v in about.items() if k != "device"), ""]
    lines += ["## Bars", "", "| bar | | figures |", "|---|---|---|"]
    lines += [f"| {v.bar} | {v.word} | {v.why} |" for v in verdicts(report)]
    lines += ["", *_stages(report), *_failures(report), *_facts(report)]
    for part in (*PARTS, "compiled"):
        lines += _times(report, part)
    lines += _pools(report)
    lines += _rotation(report)
    lines += _products(report)
    return "\n".join(lines).rstrip() + "\n"


def _rows(report: Report, stage: str) -> dict[str, Row]:
    rows: dict[str, Row] = report["stages"].get(stage, {})
    return rows


def _stages(report: Report) -> list[str]:
    lines = [
        "## Stages",
        "",
        "| stage | what | items | failed | seconds |",
        "|---|---|---|---|---|",
    ]
    for stage in STAGES:
        rows = _rows(report, stage.name)
        if rows:
            failed = sum(not row["ok"] for row in rows.values())
            seconds = sum(row["seconds"] for row in rows.values())
            lines.append(
                f"| {stage.name} | {stage.title} | {len(rows)} | {failed or ''} | {seconds:.0f} |"
            )
    return [*lines, ""]


def _failures(report: Report) -> list[str]:
    lines = []
    for stage in STAGES:
        for name, row in _rows(report, stage.name).items():
            if not row["ok"]:
                reasons = [row.get("error", ""), *row.get("mismatches", ()), row.get("summary", "")]
                what = "; ".join(str(reason) for reason in reasons if reason) or "see the JSON file"
                lines.append(f"- {stage.name}: {name}: {what[:600]}")
    return ["## What failed", "", *lines, ""] if lines else []


def _facts(report: Report) -> list[str]:
    """What the machine can do, and what a call costs the host."""
    lines = []
    for row in _rows(report, "ceilings").values():
        if row["ok"]:
            rates = [f"{k[:-7]} {v:.4g} TFLOP/s" for k, v in row.items() if k.endswith("_tflops")]
            lines.append(
                f"A large torch.mm: {', '.join(rates)}; a copy: {row['copy_tbs']:.3g} TB/s."
            )
    for row in _rows(report, "overhead").values():
        if row["ok"]:
            calls = ", ".join(f"{name} {us:.0f}" for name, us in row["microseconds"].items())
            lines.append(f"Host's microseconds of a call with nothing to do: {calls}.")
    clocks = [
        row["clocks"]["sm_mhz"]
        for rows in report["stages"].values()
        for row in rows.values()
        if "sm_mhz" in row.get("clocks", {})
    ]
    if clocks:
        lines.append(
            f"Clock of the multiprocessors while timed: {min(clocks):.0f} to {max(clocks):.0f} MHz."
        )
    return [*(f"{line}\n" for line in lines)]


def _multiple(row: Row, name: str, base: float) -> str:
    waits = " (waits)" if row["how"].get(name) == "waits" else ""
    return f"{name} {row['microseconds'][name] / base:.2f}×{waits}"


def _times(report: Report, part: str) -> list[str]:
    rows = {name: row for name, row in _rows(report, part).items() if "microseconds" in row}
    if not rows:
        return []
    title = next(stage.title for stage in STAGES if stage.name == part)
    lines = [
        f"## {title}",
        "",
        "Others are multiples of the first of ours; † is a part of the work; a share is of the "
        f"rate of `{PRODUCT}` in the same call.",
        "",
        f"| map | B | dtype | ours, µs | TFLOP/s | of {PRODUCT} | MHz | others |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        times = row["microseconds"]
        ours = [name for name in row["ours"] if name in times]
        base = times[ours[0]]
        c, h, w = row["size"]
        layout = "" if row["layout"] == "NHWC" else f", {row['layout']}"
        cells = [
            f"{row['op']}, {c}×{h}×{w}" if part == "compiled" else f"{c}×{h}×{w}{layout}",
            row["batch"],
            row["dtype"],
            ", ".join(f"{name} {times[name]:.1f}" for name in ours),
            ", ".join(f"{row['gflop'] / times[name] * 1e3:.3g}" for name in ours),
            ", ".join(f"{row['of_mm'][name]:.0%}" for name in ours),
            f"{row['clocks'].get('sm_mhz', '')}".removesuffix(".0"),
            ", ".join(_multiple(row, name, base) for name in times if name not in ours),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, ""]


def _pools(report: Report) -> list[str]:
    rows = [row for row in _rows(report, "pools").values() if "microseconds" in row]
    if not rows:
        return []
    lines = [
        "## Pools of prototypes",
        "",
        f"Others are multiples of the first of ours. A share is of the rate of `{PRODUCT}` (with "
        "gradients of three), or of a copy of the map where there is no product.",
        "",
        "| what | B × M × C × P | dtype | mode | ours, µs | share | MiB | published | others |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times, memory = row["microseconds"], row["peak_mib"]
        ours = row["ours"]
        base = times[ours[0]]
        cells = [
            f"{row['op']}: {row['title']}",
            " × ".join(map(str, row["size"])),
            row["dtype"],
            row["mode"],
            ", ".join(f"{name} {times[name]:.1f}" for name in ours),
            ", ".join(f"{row['share'][name]:.0%}" for name in ours),
            ", ".join(f"{memory[name]:.0f}" for name in ours),
            f"{memory['published']:.0f}" if "published" in memory else "",
            ", ".join(_multiple(row, name, base) for name in times if name not in ours),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, ""]


def _rotation(report: Report) -> list[str]:
    rows = [row for row in _rows(report, "rotation").values() if "microseconds" in row]
    if not rows:
        return []
    mode = "forward + backward"
    lines = ["## rotation", "", f"| C | ours, {mode}, µs | others |", "|---|---|---|"]
    for row in rows:
        names = [name for name in row["microseconds"] if name.endswith(mode)]
        base = row["microseconds"][f"{row['ours']}, {mode}"]
        others = [n for n in names if not n.startswith(f"{row['ours']},")]
        rest = ", ".join(_multiple(row, n, base).replace(f", {mode}", "") for n in others)
        lines.append(f"| {row['channels']} | {row['ours']} {base:.1f} | {rest} |")
    return [*lines, ""]


def _products(report: Report) -> list[str]:
    """Products of the rotation, the fastest first."""
    rows = [row for row in _rows(report, "products").values() if "microseconds" in row]
    if not rows:
        return []
    lines = ["## products of the rotation", "", "| C | product | µs |", "|---|---|---|"]
    for row in rows:
        times = sorted(row["microseconds"].items(), key=lambda item: item[1])
        cells = ", ".join(f"{name} {us:.1f}" for name, us in times)
        lines.append(f"| {row['channels']} | {row['kind']} | {cells} |")
    return [*lines, ""]
