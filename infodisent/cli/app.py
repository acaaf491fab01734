"""The command line: ``infodisent --help``. A command is a function in a file of its own.

Heavy imports stand inside the commands: help must not wait for torch.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from infodisent.cli.bench import bench
from infodisent.cli.demo import demo
from infodisent.cli.doctor import doctor
from infodisent.cli.evaluate import evaluate
from infodisent.cli.explain import explain
from infodisent.cli.fit import fit
from infodisent.cli.predict import predict
from infodisent.cli.prototypes import prototypes
from infodisent.cli.tune import tune
from infodisent.progress import console

COMMANDS = (demo, fit, evaluate, predict, explain, prototypes, bench, tune, doctor)
"""In the order of the help."""
INTERRUPTED = 130  # a shell's number for a program stopped by Ctrl-C

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
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
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    # the docstring would replace the help text given above
    del version


def main() -> None:
    """Entry point: expected errors become one line, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError, ModuleNotFoundError, RuntimeError) as error:
        console.print(f"[bold red]error[/bold red] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of it
            _interrupted()
        raise


def _interrupted() -> NoReturn:
    console.print("\n[yellow]interrupted; the same command goes on from here")
    sys.exit(INTERRUPTED)
