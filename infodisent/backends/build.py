"""Why a compiled module of this package is not there."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
"""Where the compiled modules lie, and the notes that their build left."""


def why_missing(module: str, note: str, otherwise: str, error: ImportError) -> str:
    """The reason for an ImportError, for people.

    Args:
        module: name of the compiled module in the package.
        note: file in which the installation said why it did not build it.
        otherwise: the reason where there is neither module nor note.
        error: what the import raised.
    """
    written = PACKAGE / note
    said = written.read_text(encoding="utf-8").strip() if written.is_file() else ""
    if said:
        return said
    if list(PACKAGE.glob(f"{module}.*")):
        return f"it does not load: {error}"
    if not written.is_file() and (PACKAGE.parent / "setup.py").is_file():
        return (
            "Python takes the package from its source folder, where nothing was built: install "
            "it with pip install -e, or start Python in another folder"
        )
    return otherwise
