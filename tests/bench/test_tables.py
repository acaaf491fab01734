"""Tables of README: excerpts, sections, and rows that were measured again."""

from __future__ import annotations

import pytest

from benchmarks import rotation_report, tables
from benchmarks.gpu import winners
from infodisent.files import write_json

TABLE = "| a | b |\n|---|---|\n| 1 | x |\n| 2 | y |\n| 3 | z |"


def test_excerpt():
    assert tables.excerpt(TABLE, ("| 3 |", "| 1 |")) == "| a | b |\n|---|---|\n| 1 | x |\n| 3 | z |"
    with pytest.raises(ValueError, match="1 rows begin as the 2"):
        tables.excerpt(TABLE, ("| 3 |", "| 4 |"))
    for name, rows in tables.EXCERPTS.items():  # of what is stored
        assert len(tables.excerpt(tables.whole_tables()[name], rows).splitlines()) == 5


def test_sections():
    def section(name):
        return f"<!-- {name} -->\nold\n<!-- /{name} -->\n"

    text = section("rotation, excerpt") + section("head") + section("methods")
    text += section("backends")
    filled = tables.fill(text)
    assert "old" not in filled
    assert tables.fill(filled) == filled
    assert "| `cuda:fp8` |" in filled
    assert tables.whole_tables()["head"] in filled
    assert tables.whole_tables()["rotation"] not in filled
    for wrong in (section("head"), section("rotation") + text):
        with pytest.raises(ValueError, match="not one place for the table 'rotation'"):
            tables.fill(wrong)


def test_rows_measured_again():
    def row(name, ms, **more):
        key = {"matrix": "random", "channels": 8, "mode": "forward", "implementation": name}
        return {**key, "milliseconds": ms, **more}

    stored = [row("infodisent", 1.0), row("slow", 9.0), row("other", 2.0)]
    again = [row("infodisent", 3.0), row("slow", 6.0, speedup=2.0)]
    merged = rotation_report.merge(stored, again)
    assert [r["milliseconds"] for r in merged] == [1.0, 6.0, 2.0]
    assert merged[1]["speedup"] == 2.0
    assert merged[1]["beside infodisent, ms"] == 3.0
    with pytest.raises(KeyError, match="never stored"):
        rotation_report.merge(stored[:1], again)


def forward_row(ours, size=(2048, 7, 7), batch=256, ok=True, layout="NHWC"):
    row = {"size": list(size), "batch": batch, "dtype": "bf16", "layout": layout, "ok": ok}
    return {**row, "ours": list(ours), "microseconds": {**ours, "eager": 300.0}}


def gpu_report(**stages):
    about = {"device": "Abacus 9000", "capability": "9.0"}
    return {"about": about, "stages": {"integers": {"a": {"ok": True}}, **stages}}


def test_the_package_carries_what_reports_say(tmp_path):
    both, one = {"triton": 110.0, "cuda": 100.5}, {"triton": 110.0}
    report = gpu_report(
        forward={
            "a": forward_row(both),
            "b": forward_row(both, ok=False),
            "c": forward_row(one),
            "d": forward_row(both, layout="NCHW"),
            "e": forward_row(both),  # of which there is no step
            "f": {"ok": False, "error": "hung"},
        },
        backward={name: forward_row({"triton": 220.0, "cuda": 200.0}) for name in "abcd"},
    )
    write_json(tmp_path / "abacus.json", report)
    write_json(tmp_path / "cpu.json", {"results": []})
    write_json(tmp_path / "rehearsal.json", {"about": {"device": "no GPU"}, "stages": {}})
    before = tables.REPORTED.read_text(encoding="utf-8")
    space: dict[str, object] = {"__name__": "reported"}
    exec(winners.module_text(before, tmp_path), space)
    (reported,) = space["REPORTS"]
    assert reported[:4] == ("abacus.json", "Abacus 9000", "9.0", 0)
    assert reported.times == (
        ("bfloat16", 2048, 49, 256, {"triton": (110.0, 220.0), "cuda": (100.5, 200.0)}),
    )
    again = winners.module_text(winners.module_text(before, tmp_path), tmp_path)
    assert again == winners.module_text(before, tmp_path)
    # whatever fails among the checks is counted
    report["stages"]["random"] = {"0 to 9": {"ok": False}, "10 to 19": {"ok": True}}
    assert winners.failed(report) == 1


def test_the_package_carries_what_is_committed():
    text = tables.REPORTED.read_text(encoding="utf-8")
    assert winners.module_text(text, tables.RESULTS) == text
