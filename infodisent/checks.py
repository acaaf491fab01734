"""Checks that the modules share."""

from __future__ import annotations

import math
import numbers


def check_choice(owner: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{owner}: {name} is {value!r}, allowed are {', '.join(allowed)}")


def check_positive(owner: str, name: str, value: int) -> None:
    """Raise ValueError unless `value` is an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}, must be an int >= 1")


def check_classes(owner: str, num_classes: int) -> None:
    """Raise ValueError unless it is an int >= 0."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f"{owner}: num_classes is {num_classes!r}, must be an int >= 0")


def check_strengths(owner: str, **strengths: float) -> None:
    """Raise ValueError unless every value is a finite number >= 0."""
    for name, value in strengths.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ValueError(f"{owner}: {name} is {value!r}, must be a number >= 0")


def check_switches(owner: str, **switches: bool) -> None:
    """Raise ValueError unless every value is True or False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner}: {name} is {value!r}, must be True or False")
