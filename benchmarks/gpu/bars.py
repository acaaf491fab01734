"""Which of the bars for the GPU kernels hold, by what a report has so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.gpu.cases import AMINMAX

Report = dict[str, Any]
Row = dict[str, Any]
WIDE = 1536
"""Channels from which on the forward is bound by arithmetic."""
SHAPES = 2000


class Verdict(NamedTuple):
    """A bar, whether it holds (None: not enough was measured), and the figures."""

    bar: str
    holds: bool | None
    why: str

    @property
    def word(self) -> str:
        """For tables."""
        return {True: "holds", False: "FAILS", None: "open"}[self.holds]


def verdicts(report: Report) -> list[Verdict]:
    """Every bar, in the order of the stages."""
    stages: dict[str, dict[str, Row]] = report.get("stages", {})
    return [
        _all_right("integers are exact", stages.get("integers", {})),
        _all_right("every operator agrees with float64", stages.get("operators", {})),
        _random(f"{SHAPES:,} random shapes without a mismatch", stages.get("random", {})),
        _all_right("pools of prototypes are exact", stages.get("pools, integers", {})),
        _random(
            f"pools of prototypes: {SHAPES:,} random shapes without a mismatch",
            stages.get("pools, random", {}),
        ),
        _share("cuda", 0.95, stages),
        _share("triton", 0.90, stages),
        _least(
            f"faster than {AMINMAX} at every size",
            1.0,
            ((name, row, AMINMAX) for name, row in stages.get("forward", {}).items()),
        ),
        _least(
            "forward + backward at least twice as fast as eager",
            2.0,
            ((name, row, "eager") for name, row in stages.get("backward", {}).items()),
        ),
        _least(
            "pools of prototypes faster than the best eager form at every size",
            1.0,
            ((name, row, "best eager") for name, row in stages.get("pools", {}).items()),
        ),
        _rotation(stages.get("rotation", {})),
        _tool("compute-sanitizer finds nothing", stages.get("sanitizer", {})),
        _tool("tests/kernels pass", stages.get("tests", {})),
    ]


def _failures(rows: dict[str, Row]) -> list[str]:
    return [name for name, row in rows.items() if not row["ok"]]


def _all_right(bar: str, rows: dict[str, Row]) -> Verdict:
    if not rows:
        return Verdict(bar, None, "not run")
    wrong = _failures(rows)
    why = f"{len(rows) - len(wrong)} of {len(rows)}"
    return Verdict(bar, not wrong, why + (f"; first: {wrong[0]}" if wrong else ""))


def _tool(bar: str, rows: dict[str, Row]) -> Verdict:
    ran = {name: row for name, row in rows.items() if "missing" not in row}
    return _all_right(bar, ran) if ran or not rows else Verdict(bar, None, "the tool is not here")


def _random(bar: str, rows: dict[str, Row]) -> Verdict:
    done = sum(row.get("shapes", 0) for row in rows.values())
    wrong = sum(len(row.get("mismatches", ())) for row in rows.values())
    broken = sum("error" in row for row in rows.values())
    why = f"{done:,} shapes, {wrong} wrong" + (f", {broken} items broke off" if broken else "")
    if wrong or broken:
        return Verdict(bar, False, why)
    return Verdict(bar, True if done >= SHAPES else None, why)


def _share(backend: str, share: float, stages: dict[str, dict[str, Row]]) -> Verdict:
    """Of the rate of torch.mm, in half precision and channels last."""
    bar = f"{backend}: forward at least {share:.0%} of torch.mm's rate from C = {WIDE} on"
    reached = {
        name: row["of_mm"][backend]
        for name, row in stages.get("forward", {}).items()
        if backend in row.get("of_mm", {})
        and row["size"][0] >= WIDE
        and row["dtype"] != "fp32"
        and row["layout"] == "NHWC"
    }
    return _worst(bar, share, reached, _broken(stages.get("forward", {})))


def _least(bar: str, least: float, rows: Iterator[tuple[str, Row, str]]) -> Verdict:
    """How many times longer a peer takes than the fastest of ours, where that is least."""
    reached, broken = {}, []
    for name, row, peer in rows:
        times = row.get("microseconds", {})
        ours = [times[own] for own in row.get("ours", ()) if own in times]
        if not row["ok"]:
            broken.append(name)
        elif ours and peer in times and row["layout"] == "NHWC":
            reached[name] = times[peer] / min(ours)
    return _worst(bar, least, reached, broken)


def _broken(rows: dict[str, Row]) -> list[str]:
    return [name for name, row in rows.items() if not row["ok"]]


def _worst(bar: str, least: float, reached: dict[str, float], broken: list[str]) -> Verdict:
    if broken:
        return Verdict(bar, False, f"{len(broken)} rows failed; first: {broken[0]}")
    if not reached:
        return Verdict(bar, None, "not measured")
    order = sorted(reached, key=reached.__getitem__)
    below = [name for name in order if reached[name] < least]
    why = f"least {reached[order[0]]:.3g} ({order[0]}), {len(reached) - len(below)} of {len(order)}"
    return Verdict(bar, not below, why)


def _rotation(rows: dict[str, Row]) -> Verdict:
    bar = "rotation at C = 2048 at least ten times as fast as torch.matrix_exp"
    reached = {}
    for name, row in rows.items():
        times = row.get("microseconds", {})
        if row.get("channels") == 2048 and row["ok"]:
            mode = "forward + backward"
            reached[name] = times[f"torch.matrix_exp, {mode}"] / times[f"{row['ours']}, {mode}"]
    return _worst(bar, 10.0, reached, _broken(rows))


def shown(report: Report, write: Callable[[str], object] = print) -> None:
    """The bars, a line each."""
    for verdict in verdicts(report):
        write(f"{verdict.word:6} {verdict.bar}: {verdict.why}")
