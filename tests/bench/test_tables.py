"""Tables of README: excerpts, sections, and rows that were measured again."""

from __future__ import annotations

import pytest

from benchmarks import rotation_report, tables

TABLE = "| a | b |\n|---|---|\n| 1 | x |\n| 2 | y |\n| 3 | z |"


def test_excerpt():
    assert tables.excerpt(TABLE, ("| 3 |", "| 1 |")) == "| a | b |\n|---|---|\n| 1 | x |\n| 3 | z |"
    with pytest.raises(ValueError, match="1 rows begin as the 2"):
        tables.excerpt(TABLE, ("| 3 |", "| 4 |"))
    for name, table in tables.whole_tables().items():  # of what is stored
        assert len(tables.excerpt(table, tables.EXCERPTS[name]).splitlines()) == 5


def test_sections():
    def section(name):
        return f"<!-- {name} -->\nold\n<!-- /{name} -->\n"

    text = section("rotation, excerpt") + section("head") + section("backends")
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
