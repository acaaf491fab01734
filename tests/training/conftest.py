"""What several files of this folder use."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from infodisent.cli import tables


@pytest.fixture
def go_table(monkeypatch):
    """The comparison of heads as it is printed on a narrow terminal."""

    def printed(metrics, width=100):
        console = Console(file=io.StringIO(), width=width)
        monkeypatch.setattr(tables, "console", console)
        tables.print_metrics(metrics)
        return console.file.getvalue()

    return printed
