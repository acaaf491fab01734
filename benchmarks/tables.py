"""Write the tables of README and of ``benchmarks/results/*.md`` from the JSON files beside these,
and what reports of GPUs say into ``infodisent/backends/reported.py``.

python benchmarks/tables.py            # rewrite them
python benchmarks/tables.py --check    # fail if one would change

In README a table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``, where NAME is "rotation"
or "head" for all of it, "rotation, excerpt" or "head, excerpt" for three rows, "methods" for a line
a method, and "backends" for the list of `infodisent.backends`. README has those of them that it has
markers for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import (
    bench_scale,
    cpu_report,
    float8_store,
    judge_speed,
    methods_report,
    plan_check,
    pools_report,
    rotation_study,
)
from benchmarks.gpu import winners
from benchmarks.rotation_report import table as rotation_table
from infodisent.backends import BACKENDS
from infodisent.files import read_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPORTED = ROOT / "infodisent" / "backends" / "reported.py"
LATER: dict[Path, Callable[[dict[str, Any]], str]] = {
    RESULTS / "judge-speed.json": judge_speed.markdown,
    bench_scale.TARGET: bench_scale.markdown,
    float8_store.TARGET: float8_store.markdown,
    plan_check.TARGET: plan_check.markdown,
}
"""Reports that need not have been made."""
EXCERPTS: dict[str, tuple[str, ...]] = {
    # the usual size, and the largest: there Cayley's map takes less than half of our time
    "rotation": (
        "| 768 | trained | forward+backward |",
        "| 2048 | random | forward+backward |",
        "| 2048 | trained | forward |",
    ),
    # one image, where the library's product alone is faster; a batch; a step of training
    "head": (
        "| rotate_pool | 1, float32 | forward |",
        "| rotate_pool | 16, float32 | forward+backward |",
        "| training_step | 64, float32 | forward+backward |",
    ),
}
"""How the rows begin that stand for a table: a usual one, the best, and one where we lose."""


def excerpt(table: str, rows: tuple[str, ...]) -> str:
    """The table's head and those rows that begin as one of `rows`, in the table's order.

    Raises:
        ValueError: there is not one row for each.
    """
    head, rule, *body = table.splitlines()
    chosen = [line for line in body if line.startswith(rows)]
    if len(chosen) != len(rows):
        raise ValueError(f"{len(chosen)} rows begin as the {len(rows)} of {rows}")
    return "\n".join([head, rule, *chosen])


def backends_table() -> str:
    """One line a backend, in the order in which ``auto`` asks them."""
    lines = ["| backend | what it is |", "|---|---|"]
    for backend in BACKENDS:
        lines.append(f"| `{backend.name}` | {backend.summary} |")
        for precision in backend.precisions:
            served = backend.at(precision)
            lines.append(f"| `{served.name}` | {served.summary} |")
    return "\n".join(lines)


def whole_tables() -> dict[str, str]:
    """The stored tables by name, in Markdown."""
    return {
        "rotation": rotation_table(read_json(RESULTS / "cpu-rotation.json")["rows"]),
        "head": cpu_report.summary(read_json(RESULTS / "cpu-head.json")["results"]),
        "methods": methods_report.summary(read_json(RESULTS / "methods.json")),
    }


def result_files() -> dict[str, str]:
    """Names below ``benchmarks/results`` and what must be in these files."""
    rotation = read_json(RESULTS / "cpu-rotation.json")
    facts = ", ".join(f"{k} {v}" for k, v in rotation["machine"].items())
    later = {
        name.with_suffix(".md").name: markdown(read_json(name))
        for name, markdown in LATER.items()
        if name.is_file()
    }
    return later | {
        "cpu-rotation.md": f"{facts}\n\n{rotation_table(rotation['rows'])}\n",
        "cpu-pools.md": pools_report.markdown(read_json(RESULTS / "cpu-pools.json")),
        "methods.md": methods_report.markdown(read_json(RESULTS / "methods.json")),
        "rotation-study.md": rotation_study.markdown(read_json(RESULTS / "rotation-study.json")),
        "cpu-head.md": cpu_report.markdown(read_json(RESULTS / "cpu-head.json")),
    }


def fill(text: str) -> str:
    """A text of README with what belongs between its markers.

    Raises:
        ValueError: a table has no place, or two.
    """
    tables = whole_tables()
    sections: dict[str, Callable[[], str]] = {"backends": backends_table}
    for name, table in tables.items():
        sections[name] = lambda table=table: table
        if name in EXCERPTS:
            sections[f"{name}, excerpt"] = lambda n=name, table=table: excerpt(table, EXCERPTS[n])
    places = dict.fromkeys(sections, 0)
    for name, content in sections.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if re.search(pattern, text, re.DOTALL):
            whole = content()
            text, places[name] = re.subn(
                pattern, lambda m, t=whole: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
            )
    for name in tables:
        if places[name] + places.get(f"{name}, excerpt", 0) != 1:
            raise ValueError(f"not one place for the table {name!r}")
    return text


def main() -> None:
    """Rewrite what is not as it must be, or name it."""
    readme = ROOT / "README.md"
    wanted = {readme: fill(readme.read_text(encoding="utf-8"))}
    wanted |= {RESULTS / name: text for name, text in result_files().items()}
    wanted[REPORTED] = winners.module_text(REPORTED.read_text(encoding="utf-8"), RESULTS)
    for path, text in wanted.items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv:
            sys.exit(
                f"{path.name}: not what benchmarks/results/*.json say; run benchmarks/tables.py"
            )
        write_text(path, text)


if __name__ == "__main__":
    main()
