"""The command line: ``infodisent --help``. A command is a function in a file of its own.

Heavy imports stand inside the commands: help must not wait for torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from infodisent.allocator import keep_memory
from infodisent.cli.bench import bench
from infodisent.cli.demo import demo
from infodisent.cli.doctor import doctor
from infodisent.cli.errors import TRACEBACK, one_line
from infodisent.cli.evaluate import evaluate
from infodisent.cli.explain import explain
from infodisent.cli.fit import fit
from infodisent.cli.judge import judge
from infodisent.cli.methods import methods
from infodisent.cli.plan import plan
from infodisent.cli.predict import predict
from infodisent.cli.prototypes import prototypes
from infodisent.cli.report import report
from infodisent.cli.threads import settle_threads
from infodisent.cli.tune import tune
from infodisent.progress import console, forgiving_streams

COMMANDS = (
    demo, fit, evaluate, judge, predict, explain, report, prototypes, methods, plan, bench, tune,
    doctor,
)  # fmt: skip
"""In the order of the help."""
RESUMING = ("demo", "fit")
"""Commands that go on where they were stopped."""
DIVIDED = ("fit", "evaluate", "judge", "predict", "prototypes")
"""Commands that several processes of ``torchrun`` do together, see `infodisent.ranks`."""
INTERRUPTED = 130  # a shell's number for a program stopped by Ctrl-C

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make any pretrained image classifier interpretable.\n\n"
    "Start with [bold]infodisent demo[/bold]: real weights, real photographs, a few minutes. "
    "Then [bold]infodisent fit FOLDER[/bold] with your own images, one folder per class.",
)
for _command in COMMANDS:
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from infodisent.version import __version__

        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    # the docstring would replace the help text given above
    del version
    _leave_to_one(context.invoked_subcommand)


def _leave_to_one(command: str | None) -> None:
    """End this process, unless it is the first, where a command is no work for several."""
    size = os.environ.get("WORLD_SIZE", "1")
    if command is None or command in DIVIDED or size in ("", "0", "1"):
        return
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit
    console.print(
        f"[yellow]{command} runs in one process: of the {size} that were started the others have "
        f"ended; several do {', '.join(DIVIDED)}"
    )


def main() -> None:
    """Entry point: errors become one line, not a traceback; ``INFODISENT_TRACEBACK=1`` shows it."""
    forgiving_streams()
    settle_threads()
    keep_memory()
    try:
        app()
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of it
            _interrupted()
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            raise
        console.quiet = False  # of several processes each says why it ends
        console.print(f"[bold red]error[/bold red] {type(error).__name__}: ", end="")
        console.print(one_line(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _interrupted() -> NoReturn:
    console.print("\n[yellow]interrupted" + _what_is_left(sys.argv[1:]))
    sys.exit(INTERRUPTED)


def _what_is_left(arguments: list[str]) -> str:
    """What becomes of a command that was stopped."""
    if not set(RESUMING) & set(arguments[:1]):
        return ""
    again = " without --overwrite" if "--overwrite" in arguments else ""
    return f"; the same command{again} goes on from here"
