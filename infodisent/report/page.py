"""Explanations as one self-contained HTML page: no server, no request, a tool to ask with.

What a reader sees without scripts, a sum of every image and the figures of the model, is written
by the template; what scripts show besides is one JSON block, see `pagedata`, and the sources in
``page/``. File and class names come from outside: the template escapes all of them, scripts set
them as text only, and the page's own content policy allows no script but these.

Size: at most 75 MB for 1,000 images and a head of 1,280 units; of solar cells 42 MB. Photographs
take up to 30 KB each (6 KB as a rule), unit values up to 16 KB; heat maps of all images together
16 MB (`units.MAP_BYTES`, as base64), training images 12 MB (`shelf.PROTOTYPE_PICTURES`).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from infodisent.explanations.evidence import ChannelEvidence, Explanation
from infodisent.explanations.prototypes import Prototypes
from infodisent.files import write_text
from infodisent.report.packing import data_uri, script_json
from infodisent.report.pagedata import Side, page_data, picture_side
from infodisent.report.pictures import Pictures, shrink
from infodisent.report.standing import Standing
from infodisent.report.view import (
    answer_text,
    change_text,
    check_fits,
    explains_prediction,
    path_title,
    short_name,
    signed,
    terms,
    top_classes,
)
from infodisent.version import __version__

SCRIPTS = ("core", "tiles", "rows", "card", "browse", "gallery", "main")
"""Sources of the page's script in ``page/``, in the order they need each other."""
MATRIX_CLASSES = 16
"""A confusion matrix of more classes is a list of the commonest mistakes instead."""
_PERCENT = {"accuracy", "balanced_accuracy", "explained"}
_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "f1": "macro F1",
    "explanation_size": "{unit}s for 95 % of the {score} (median)",
    "explained": "predicted {score} above 0",
    "magnitude_size": "{unit}s for 95 % of all evidence (median)",
    "units_used": "{unit}s used",
}


@dataclass(frozen=True, eq=False)
class About:
    """What a page says besides its images.

    Attributes:
        title: of the page.
        summary: rows of a table, each a mapping from column to value (``metrics["rows"]`` of a run
            fits), or one mapping, shown as a list of facts. Fractions named accuracy,
            balanced_accuracy or explained become percentages, None a dash.
        facts: short facts for the head of the page, name to value.
        notices: what the owner of the head should know, see `Head.notices`.
        standing: figures of the held-out images.
        chosen: how the images were chosen, a sentence.
        attribution: whose the photographs are and under which licence, a sentence.
    """

    title: str = "Why these images got these classes"
    summary: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] | None = None
    notices: Sequence[str] = ()
    standing: Standing | None = None
    chosen: str = ""
    attribution: str = ""


def write_page(
    path: str | os.PathLike[str],
    explanations: Sequence[Explanation],
    prototypes: Prototypes,
    about: About | None = None,
    *,
    side: Side | None = None,
    compared: Sequence[Side] = (),
    pictures: Pictures | None = None,
) -> None:
    """Write the page, at once or not at all.

    Args:
        path: of the ``.html`` file.
        explanations: what to show, in this order; at least one.
        prototypes: of the same head.
        about: what else the page says.
        side: all units of the same explanations, which the reader may then ask for; default: the
            page knows the units and classes that the explanations hold.
        compared: other runs' explanations of the same images.
        pictures: decoded prototype pictures, to share between pages.

    Raises:
        ValueError: no explanations, prototypes of another head, or a run compared with explains
            another number of images.
    """
    if not explanations:
        raise ValueError("write_page: explanations is empty, at least one is needed")
    for explanation in explanations:
        check_fits(explanation, prototypes)
    for other in compared:
        if len(other.explanations) != len(explanations):
            raise ValueError(
                f"write_page: {other.name} explains {len(other.explanations)} images, the page "
                f"has {len(explanations)}"
            )
    about = about or About()
    side = side or Side("run", explanations, prototypes, pictures=pictures)
    page = _template().render(_context(about, explanations, prototypes, [side, *compared]))
    # names of files may hold bytes that are no text
    write_text(path, page.encode("utf-8", "backslashreplace").decode("utf-8"))


def _context(
    about: About,
    explanations: Sequence[Explanation],
    prototypes: Prototypes,
    sides: Sequence[Side],
) -> dict[str, Any]:
    facts, summary = dict(about.facts or {}), about.summary
    if isinstance(summary, Mapping):
        facts |= summary
        summary = ()
    first, script, early = explanations[0], _script(), _source("early.js")
    evidence = [c for x in explanations for c in x.shown]
    judged = [x.correct for x in explanations if x.correct is not None]
    longest = picture_side(len(explanations))
    return {
        "title": about.title,
        "facts": {name: _format(name, value) for name, value in facts.items()},
        "notices": about.notices,
        "chosen": about.chosen,
        "attribution": about.attribution,
        "standing": _standing(about.standing),
        "table": _table(summary, {"unit": first.unit, "score": first.score}),
        "images": [_image(x, i, longest, prototypes.grid) for i, x in enumerate(explanations, 1)],
        "right": sum(judged),
        "wrong": len(judged) - sum(judged),
        "grid": prototypes.grid,
        "channel_count": prototypes.channels,
        "unit": first.unit,
        "score": first.score,
        "offset": first.offset,
        "linear": all(c.linear for c in evidence),
        "two_sided": any(c.neg for c in evidence),
        "decides": any(x.decisions for x in explanations),
        "abstentions": sum(x.abstained for x in explanations),
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "style": Markup(_source("page.css")),
        "script": Markup(script),
        "script_hash": _hash(script),
        "early": Markup(early),
        "early_hash": _hash(early),
        "data": Markup(script_json(page_data(sides))),
    }


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("infodisent", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    return environment.get_template("page.html.j2")


@cache
def _source(name: str) -> str:
    return (resources.files("infodisent.report") / "page" / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """All scripts as one, with names of their own."""
    parts = "\n".join(_source(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();'


def _hash(script: str) -> str:
    """As the content policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _image(e: Explanation, number: int, longest: int, grid: tuple[int, int]) -> dict[str, Any]:
    where = [_where(e, c, grid) for c in e.shown]
    return {
        "number": number,
        "name": short_name(e.path),
        "uri": data_uri(shrink(e.picture, longest), 84),
        "size": e.picture.size,
        "class": e.class_name,
        "predicted": e.predicted_name,
        "explains_prediction": explains_prediction(e),
        "multilabel": e.independent,
        "abstained": e.abstained,
        "labels": e.predicted_names,
        "notes": e.notes,
        "true": e.true_name,
        "verdict": "abstained"
        if e.abstained
        else {None: "unknown", True: "right", False: "wrong"}[e.correct],
        "probability": float(e.probabilities[e.class_index]),
        "predicted_probability": float(e.probabilities.max()),
        "score": e.score_value,
        "size95": e.size95,
        "magnitude_size": e.magnitude_size,
        "channels": e.channels,
        "top": top_classes(e),
        "terms": [
            {
                "label": f"{e.unit} {e.shown[i].channel}" if i < len(where) else term.label,
                "value": term.value,
                "kind": term.kind,
                "where": where[i] if i < len(where) else "",
            }
            for i, term in enumerate(terms(e))
        ],
        "path_title": path_title(e),
        "path": [
            {
                "unit": step.unit,
                "answer": answer_text(step),
                "change": change_text(e, step),
                "likeliest": step.likeliest,
                "likeliest_probability": step.likeliest_probability,
            }
            for step in e.decisions
        ],
    }


def _where(e: Explanation, c: ChannelEvidence, grid: tuple[int, int]) -> str:
    """The patch of a unit in words."""
    if c.box is None:
        return "nowhere in the image"
    (rows, columns), (width, height) = grid, e.picture.size
    row, column = round(c.box[1] * rows / height), round(c.box[0] * columns / width)
    return f"in row {min(row, rows - 1) + 1}, column {min(column, columns - 1) + 1}"


def _standing(known: Standing | None) -> dict[str, Any] | None:
    """Accuracy, a row a class, and the confusion matrix, or its largest entries."""
    if known is None:
        return None
    counts = known.confusion
    small = len(known.classes) <= MATRIX_CLASSES

    def part(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    sizes = counts.sum(1).tolist()
    return {
        "accuracy": known.accuracy,
        "error": known.error,
        "images": known.images,
        "abstained": known.abstained,
        "names": known.classes,
        "rows": [
            {"name": name, "images": n, "recall": part(r), "precision": part(p)}
            for name, n, r, p in zip(
                known.classes, sizes, known.recall, known.precision, strict=True
            )
        ],
        "matrix": [
            [{"count": n, "part": round(n / max(1, size), 3)} for n in row]
            for row, size in zip(counts.tolist(), sizes, strict=True)
        ]
        if small
        else [],
        "mistakes": [] if len(known.classes) <= 2 else known.mistakes(),
    }


def _table(rows: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> dict[str, Any]:
    """Columns and formatted cells; columns without any value are left out. `words`: of `_NAMES`."""
    columns = [c for c in dict.fromkeys(c for row in rows for c in row)
               if any(row.get(c) is not None for row in rows)]  # fmt: skip
    return {
        "columns": [
            _NAMES[c].format(**words) if c in _NAMES else str(c).replace("_", " ")
            for c in columns
        ],
        "numeric": [all(isinstance(r.get(c), (int, float, type(None))) for r in rows)
                    for c in columns],
        "rows": [[_format(c, row.get(c)) for c in columns] for row in rows],
    }  # fmt: skip


def _format(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, float):
        if name in _PERCENT:
            return f"{value:.1%}"
        if name == "f1":
            return f"{value:.3f}"
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.3f}"
    return str(value)
