"""The options of a method as its classes declare them: signatures, docstrings and checks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PLACEMENT = {"input_fmt", "num_prefix_tokens", "device", "dtype"}
"""Keyword arguments of a head that follow from its backbone: not options of the method."""
_NO_VALUE = "?"  # what no option allows
_IN_FEATURES, _CLASSES = 8, 3  # any that a head takes


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        name: of the keyword argument.
        kind: its annotation, such as "int" or "float | None".
        default: its value where it is not given; None where the method finds one itself.
        allowed: what its check says of a value that is not allowed, such as "must be an int >= 1".
        meaning: what the docstring says of it, in one line.
    """

    name: str
    kind: str
    default: object
    allowed: str
    meaning: str


def declared(cls: type, last: type) -> dict[str, tuple[type, inspect.Parameter]]:
    """What a constructor takes by keyword, but for placement, and the class that declares it.

    Those of the classes up to `last` that it is made from too, where it hands them on as
    ``**options``.
    """
    found: dict[str, tuple[type, inspect.Parameter]] = {}
    for owner in cls.__mro__[: cls.__mro__.index(last) + 1]:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in PLACEMENT:
                found.setdefault(parameter.name, (owner, parameter))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def describe(cls: Callable[..., Any], options: dict[str, Any]) -> tuple[Option, ...]:
    """Options of a head's class, `options` being what `declared` finds."""
    return tuple(
        Option(
            name,
            str(parameter.annotation),
            parameter.default,
            _allowed(cls, name),
            _short(_arguments(owner).get(name, "")),
        )
        for name, (owner, parameter) in options.items()
    )


def first_paragraph(cls: type) -> str:
    """How a class's docstring begins: its first line and the paragraph after it, without breaks."""
    parts = re.split(r"\n\s*\n", inspect.getdoc(cls) or "")
    return " ".join(" ".join(parts[:2]).split())


def _allowed(cls: Callable[..., Any], name: str) -> str:
    try:
        cls(_IN_FEATURES, _CLASSES, **{name: _NO_VALUE})
    except ValueError as error:
        _, _, said = str(error).partition(f"{name} is ")
        return said.partition(", ")[2].removeprefix("which is ")
    return ""


def _arguments(cls: type) -> dict[str, str]:
    """The section Args of a docstring: what is said of each name."""
    text = inspect.getdoc(cls) or ""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"\n {4}(?! )", "\n" + (section[1] if section else ""))
    found: dict[str, str] = {}
    for entry in entries:
        names, colon, meaning = entry.partition(": ")
        if colon:
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def _short(meaning: str) -> str:
    """The first sentence, and the one that says a default."""
    first, *others = re.split(r"(?<=\.) (?=[A-Z])", meaning)
    return " ".join([first, *(text for text in others if text.startswith("Default"))])
