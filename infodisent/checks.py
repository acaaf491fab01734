"""Checks that the modules share."""

from __future__ import annotations

import math
from numbers import Real


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


def check_one_pool(owner: str, pool_type: object) -> None:
    """Raise ValueError where a pool is asked for, as timm allows, of a head that has its own."""
    if pool_type is not None:
        raise ValueError(
            f"{owner}.reset: pool_type is {pool_type!r}, but this head has one pool only"
        )


def check_strengths(owner: str, **strengths: object) -> None:
    """`check_strength` of several."""
    for name, value in strengths.items():
        check_strength(owner, name, value)


def check_switches(owner: str, **switches: object) -> None:
    """`check_flag` of several."""
    for name, value in switches.items():
        check_flag(owner, name, value)


def check_strength(owner: str, name: str, value: object, least: int = 0) -> None:
    """Raise ValueError unless `value` is a finite number >= `least`."""
    if not _is_number(value, least, math.inf) or value == math.inf:
        raise ValueError(f"{owner}: {name} is {value!r}, must be a number >= {least}")


def check_rate(owner: str, name: str, value: object) -> None:
    """Raise ValueError unless `value` is a number in [0, 1)."""
    if not _is_number(value, 0, 1) or value == 1:
        raise ValueError(f"{owner}: {name} is {value!r}, must be in [0, 1)")


def check_between(owner: str, name: str, value: object, low: float, high: float) -> None:
    """Raise ValueError unless `value` is a number from `low` to `high`."""
    if not _is_number(value, low, high):
        raise ValueError(f"{owner}: {name} is {value!r}, allowed {low:g} to {high:g}")


def check_flag(owner: str, name: str, value: object) -> None:
    """Raise ValueError unless `value` is a bool: the word "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {name} is {value!r}, allowed are True and False (true, false)")


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high
