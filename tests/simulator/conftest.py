"""Tests on the simulator take minutes: they run where asked for (pytest tests/simulator)."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whether a file is left out: in the whole suite all of this folder are."""
    return None if any("simulator" in argument for argument in config.args) else True
