"""`infodisent methods`: the heads that can be trained, and where they come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from infodisent.progress import console

if TYPE_CHECKING:
    from infodisent.methods import Head

_NAME = typer.Argument(help="One method, to see what its options mean.", metavar="[NAME]")


def methods(name: Annotated[str | None, _NAME] = None) -> None:
    """List the methods: what each does, its paper, and the options that --option takes.

    With the name of one: its options with types, defaults and allowed values.

    Example: infodisent methods protopnet
    """
    from infodisent.methods import DEFAULT, METHODS, method_class

    if name is not None:
        return _show(method_class(name))
    table = Table()
    for column in ("method", "what it does", "paper", "options"):
        table.add_column(column, overflow="fold")
    for each, head in METHODS.items():
        default = " (default)" if each == DEFAULT else ""
        options = ", ".join(head.option_names())
        table.add_row(each + default, *map(escape, (head.summary, head.paper, options)))
    console.print(table)
    console.print("[dim]infodisent fit FOLDER --method NAME --option name=value", highlight=False)
    console.print("[dim]infodisent methods NAME: what the options of one mean", highlight=False)
    return None


def _show(head: type[Head]) -> None:
    """One method, its options as `--option` takes them."""
    from infodisent.methods.declared import first_paragraph

    console.print(f"[bold]{head.method}[/bold]: {head.title}", highlight=False)
    _say(first_paragraph(head))
    _say(head.paper)
    if not head.multilabel:
        _say("Learns images with one label each.")
    options = head.described_options()
    for option in options:
        default = f"{option.name}={_value(option.default)}"
        limits = escape(f"{option.kind}; {option.allowed}".removesuffix("; "))
        console.print(f"\n[bold]{escape(default)}[/bold]  {limits}", highlight=False)
        _say(option.meaning)
    known = next(option for option in options if option.default is not None)
    example = f"{known.name}={_value(known.default)}"
    console.print(
        f"\ninfodisent fit FOLDER --method {head.method} -O {example}", markup=False,
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print("[dim]above are the defaults; null: found by the method itself", highlight=False)
    console.print(f"[dim]all that is known of it: python -m pydoc {head.__module__}")


def _say(text: str) -> None:
    plain = escape(text.replace("`", ""))
    console.print(Padding(plain, (0, 0, 0, 2), expand=False), highlight=False)


def _value(default: object) -> str:
    """As it is typed after ``name=``."""
    return default if isinstance(default, str) else json.dumps(default)
