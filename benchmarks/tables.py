"""Write the tables of README from the JSON files in ``benchmarks/results``.

python benchmarks/tables.py            # rewrite README.md
python benchmarks/tables.py --check    # fail if it would change
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cpu_report import summary
from benchmarks.rotation_report import table as rotation_table
from infodisent.files import read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Replace what stands between the markers."""
    path = ROOT / "README.md"
    old = new = path.read_text(encoding="utf-8")
    rows = read_json(RESULTS / "cpu-rotation.json")["rows"]
    head = read_json(RESULTS / "cpu-head.json")["results"]
    for name, text in (("rotation", rotation_table(rows)), ("head", summary(head))):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        new, count = re.subn(pattern, lambda m, t=text: f"{m[1]}{t}\n{m[2]}", new, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"README.md: no place for the table {name!r}")
    if "--check" in sys.argv:
        sys.exit("README.md: its tables are not those of benchmarks/results" if new != old else 0)
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
