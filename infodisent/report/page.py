"""Explanations as one self-contained HTML page: no script, no request, readable anywhere.

Every picture is inside the page, as base64. A prototype picture that many channels share is stored
once, as an SVG symbol, and its patch is drawn over it as vectors. File and class names come from
outside: the template escapes all of them, and the page's own content policy forbids scripts.
"""

from __future__ import annotations

import base64
import datetime
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from infodisent.explanations.evidence import ChannelEvidence, DecisionEvidence, Explanation
from infodisent.explanations.prototypes import Prototypes
from infodisent.files import write_text
from infodisent.report.pictures import Pictures, heat_overlay, shrink
from infodisent.report.view import (
    answer_text,
    change_text,
    check_fits,
    explains_prediction,
    marks,
    path_title,
    prototype_box,
    segments,
    short_name,
    signed,
    terms,
    top_classes,
)
from infodisent.version import __version__

PICTURE_SIDE, HEAT_SIDE, PROTOTYPE_SIDE = 448, 200, 152
CHANNELS_SHOWN = 12
_PERCENT = {"accuracy", "balanced_accuracy", "explained"}
_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "f1": "macro F1",
    "explanation_size": "{unit}s for 95 % of the {score} (median)",
    "explained": "predicted {score} above 0",
    "magnitude_size": "{unit}s for 95 % of all evidence (median)",
    "units_used": "{unit}s used",
}


def write_page(
    path: str | os.PathLike[str],
    explanations: Sequence[Explanation],
    prototypes: Prototypes,
    *,
    title: str = "Why these images got these classes",
    summary: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    channels: Sequence[int] | None = None,
    pictures: Pictures | None = None,
) -> None:
    """Write the page, at once or not at all.

    Args:
        path: of the ``.html`` file.
        explanations: what to show, in this order; at least one.
        prototypes: of the same head.
        title: of the page.
        summary: rows of a table, each a mapping from column to value (``metrics["rows"]`` of a run
            fits), or one mapping, shown as a list of facts. Fractions named accuracy,
            balanced_accuracy or explained become percentages, None a dash.
        facts: short facts for the head of the page, name to value.
        channels: channels of the section "what the channels mean"; default: those that the
            explanations use most, at most 12; empty: no such section.
        pictures: decoded prototype pictures, to share between pages.

    Raises:
        ValueError: no explanations, an unknown channel, or prototypes of another head.
    """
    if not explanations:
        raise ValueError("write_page: explanations is empty, at least one is needed")
    for explanation in explanations:
        check_fits(explanation, prototypes)
    used = Counter(e.channel for x in explanations for e in x.shown)
    if channels is None:
        channels = [c for c, _ in used.most_common(CHANNELS_SHOWN)]
    for channel in channels:
        prototypes.check_channel(channel)
    facts = dict(facts or {})
    if isinstance(summary, Mapping):
        facts |= summary
        summary = ()
    shelf = _Shelf(prototypes, pictures or Pictures(prototypes.transform, PROTOTYPE_SIDE))
    images = [_image(x, i, shelf) for i, x in enumerate(explanations, 1)]
    meanings = [
        {
            "channel": c,
            "sides": [{"sign": s, "prototypes": shelf.of(c, s)} for s in (1, -1)],
            "used": [
                image["number"]
                for image, x in zip(images, explanations, strict=True)
                if any(e.channel == c for e in x.shown)
            ],
        }
        for c in channels
    ]
    first = explanations[0]
    evidence = [c for x in explanations for c in x.shown]
    judged = [x.correct for x in explanations if x.correct is not None]
    page = _template().render(
        title=title,
        facts={name: _format(name, value) for name, value in facts.items()},
        table=_table(summary, {"unit": first.unit, "score": first.score}),
        images=images,
        right=sum(judged),
        wrong=len(judged) - sum(judged),
        meanings=meanings,
        symbols=shelf.symbols(),
        grid=prototypes.grid,
        channel_count=prototypes.channels,
        unit=first.unit,
        score=first.score,
        offset=first.offset,
        linear=all(c.linear for c in evidence),
        two_sided=any(c.neg for c in evidence),
        decides=any(x.decisions for x in explanations),
        version=__version__,
        date=datetime.date.today().isoformat(),
    )
    # names of files may hold bytes that are no text
    write_text(path, page.encode("utf-8", "backslashreplace").decode("utf-8"))


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


class _Shelf:
    """The prototype pictures of a page, each encoded once."""

    def __init__(self, prototypes: Prototypes, pictures: Pictures) -> None:
        self._prototypes, self._pictures = prototypes, pictures
        self._ids: dict[str, str] = {}

    def of(self, channel: int, sign: int) -> list[dict[str, Any]]:
        """The prototypes of one side of a channel, for the template."""
        entries = []
        for p in self._prototypes.of(channel, sign):
            image, missing = self._pictures.get(p.file)
            name = short_name(p.file)
            entries.append(
                {
                    "id": self._ids.setdefault(p.file, f"p{len(self._ids)}"),
                    "size": image.size,
                    "box": None
                    if missing
                    else _rectangle(prototype_box(p, self._prototypes.grid, image.size)),
                    "label": p.label_name,
                    "name": name,
                    "value": p.value,
                    "alt": f"{p.label_name}, {name}: {missing}"
                    if missing
                    else f"{p.label_name}, {name}; activation {p.value:.2f}, patch in row "
                    f"{p.pixel[0] + 1}, column {p.pixel[1] + 1}",
                }
            )
        return entries

    def symbols(self) -> list[dict[str, Any]]:
        """Every picture used so far: id, size and data URI."""
        return [
            {"id": i, "size": (image := self._pictures.get(file).image).size, "uri": _uri(image)}
            for file, i in self._ids.items()
        ]


def _uri(image: Image.Image, quality: int = 82) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rectangle(box: Sequence[float]) -> dict[str, float]:
    x0, y0, x1, y1 = box
    return {"x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0}


def _image(explanation: Explanation, number: int, shelf: _Shelf) -> dict[str, Any]:
    e, picture = explanation, shrink(explanation.picture, PICTURE_SIDE)
    largest = max((abs(c.contribution) for c in e.shown), default=1.0)
    evidence = [_evidence(e, c, i, largest, shelf) for i, c in enumerate(e.shown, 1)]
    split = len(e.supporting)
    addends = terms(e)
    equation = " ".join(f"{signed(t.value, 4)} ({_spoken(t.label, e.unit)})" for t in addends)
    return {
        "number": number,
        "name": short_name(e.path),
        "uri": _uri(picture, 86),
        "thumbnail": _uri(shrink(e.picture, 120)),
        "size": e.picture.size,
        "marks": _marks(e),
        "class": e.class_name,
        "predicted": e.predicted_name,
        "explains_prediction": explains_prediction(e),
        "multilabel": e.independent,
        "labels": e.predicted_names,
        "notes": e.notes,
        "true": e.true_name,
        "verdict": {None: "unknown", True: "right", False: "wrong"}[e.correct],
        "probability": float(e.probabilities[e.class_index]),
        "predicted_probability": float(e.probabilities.max()),
        "score": e.score_value,
        "size95": e.size95,
        "magnitude_size": e.magnitude_size,
        "channels": e.channels,
        "top": top_classes(e),
        "sections": [
            section
            for section in (
                {"kind": "supports", "rows": evidence[:split]},
                {"kind": "opposes", "rows": evidence[split:]},
            )
            if section["rows"]
        ],
        "terms": addends,
        "equation": f"{equation} = {signed(e.score_value, 4)}",
        "bar": _bar(e),
        "path_title": path_title(e),
        "path": [_decision(e, step, shelf) for step in e.decisions],
    }


def _decision(e: Explanation, step: DecisionEvidence, shelf: _Shelf) -> dict[str, Any]:
    """A card of the path: the unit in this image, its first prototype, the answer."""
    row = _evidence(e, step.evidence, 0, 1.0, shelf)
    return {
        **{name: row[name] for name in ("heat", "size", "box")},
        "prototypes": row["prototypes"][:1],
        "unit": step.unit,
        "kind": "supports" if step.evidence.sign == 1 else "opposes",
        "answer": answer_text(step),
        "change": change_text(e, step),
        "likeliest": step.likeliest,
        "likeliest_probability": step.likeliest_probability,
        "probability": step.probability,
    }


def _spoken(label: str, unit: str) -> str:
    return f"{unit} {label}" if label.isdigit() else label


def _evidence(
    e: Explanation, c: ChannelEvidence, number: int, largest: float, shelf: _Shelf
) -> dict[str, Any]:
    overlay = shrink(heat_overlay(e.picture, c.heat, c.sign), HEAT_SIDE)
    return {
        "number": number,
        "channel": c.channel,
        "contribution": c.contribution,
        "share": 100 * abs(c.contribution) / largest,
        "weight": c.weight,
        "linear": c.linear,
        "pos": c.pos,
        "neg": c.neg,
        "heat": _uri(overlay),
        "heat_size": overlay.size,
        "size": e.picture.size,
        "box": None if c.box is None else _rectangle(c.box),
        "prototypes": shelf.of(c.channel, c.side),
    }


def _marks(e: Explanation) -> list[dict[str, Any]]:
    radius = max(e.picture.size) / 30
    return [
        {"number": m.number, "kind": m.kind, "cx": m.center[0], "cy": m.center[1], "r": radius,
         **_rectangle(m.box)}
        for m in marks(e, radius)
    ]  # fmt: skip


def _bar(e: Explanation) -> dict[str, Any]:
    """The sum's two lanes in percent of the bar's width."""
    pieces = segments(e)
    ends = [0.0, e.score_value, *(s.end for s in pieces)]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    return {
        "zero": 100 * -low / span,
        "logit": 100 * (e.score_value - low) / span,
        "pieces": [
            {
                "kind": s.term.kind,
                "lane": s.lane,
                "left": 100 * (min(s.start, s.end) - low) / span,
                "width": 100 * abs(s.end - s.start) / span,
                "label": s.term.label.split(" of ")[0],
                "hint": f"{_spoken(s.term.label, e.unit)}: {signed(s.term.value, 4)}",
            }
            for s in pieces
        ],
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
    if isinstance(value, float):
        if name in _PERCENT:
            return f"{value:.1%}"
        if name == "f1":
            return f"{value:.3f}"
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.3f}"
    return str(value)
