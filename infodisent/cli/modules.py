"""``--module file.py:function``: an architecture of the user's own."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infodisent.progress import notice

if TYPE_CHECKING:
    from infodisent.training.checkpoint import Architecture

ModuleOption = Annotated[
    str | None,
    typer.Option(
        "--module",
        metavar="FILE.py:FUNCTION",
        help="Function without arguments that returns the classifier, or what attach makes of it.",
    ),
]


def module_from(given: str | None) -> Architecture | None:
    """Run the user's function; None for None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not of the form ``file.py:function``, or the file has no such function.
        TypeError: it does not return a module.
    """
    if given is None:
        return None
    file, colon, name = given.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py" or not name.isidentifier():
        raise ValueError(f"--module is {given!r}, must be FILE.py:FUNCTION")
    if not path.is_file():
        raise FileNotFoundError(
            f"--module: {path} {'is no file' if path.exists() else 'does not exist'}"
        )
    spec = importlib.util.spec_from_file_location(f"_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--module: {path} cannot be read as Python")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses and pickle look there
    sys.path.insert(0, str(path.resolve().parent))  # as `python file.py` has it
    from torch import nn

    from infodisent.backbones.torchvision_import import ensure_torchvision

    ensure_torchvision()  # the file may import timm or torchvision
    spec.loader.exec_module(loaded)
    function = getattr(loaded, name, None)
    if not callable(function):
        known = [n for n, v in vars(loaded).items() if callable(v) and not n.startswith("_")]
        raise ValueError(
            f"--module: {path} has no function {name!r}; it has {', '.join(known[:8])}"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "attach: ")  # it is said again of what comes of it
        module = function()
    if not isinstance(module, nn.Module):
        raise TypeError(f"--module: {given} returns a {type(module).__name__}, not an nn.Module")
    return module


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print what is warned of in the block as lines of the command, without paths of code."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(w.message) for w in said if w.category is UserWarning):
        notice(f"note: {text}")
