"""Checks that the modules share."""

from __future__ import annotations


def check_choice(owner: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{owner}: {name} is {value!r}, allowed are {', '.join(allowed)}")


def check_positive(owner: str, name: str, value: int) -> None:
    """Raise ValueError unless `value` is an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}, must be an int >= 1")
