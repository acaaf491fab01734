"""`infodisent methods`: the heads that can be trained, and where they come from."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from infodisent.progress import console


def methods() -> None:
    """List the methods: what each does, its paper, and the options that --option takes.

    Example: infodisent methods
    """
    from infodisent.methods import DEFAULT, METHODS

    table = Table()
    for column in ("method", "what it does", "paper", "options"):
        table.add_column(column, overflow="fold")
    for name, head in METHODS.items():
        default = " (default)" if name == DEFAULT else ""
        options = ", ".join(head.option_names())
        table.add_row(name + default, *map(escape, (head.summary, head.paper, options)))
    console.print(table)
    console.print("[dim]infodisent fit FOLDER --method NAME --option name=value", highlight=False)
