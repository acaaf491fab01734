"""One progress display for all long work, and a console that any terminal can be.

On a terminal a bar (rich); where output goes to a file or a pipe, a line now and then; nothing
where nobody wants to see it. What a console's encoding does not have comes out as a replacement.
"""

from __future__ import annotations

import codecs
import sys
import time
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY = 15.0
"""Seconds between the lines of a display that has no terminal."""
PLAIN = "infodisent-plain"
"""Name of the error handler that `codecs` knows: a likeness of typographic signs, ? of others."""
_LIKENESS = {
    "×": "x",
    "·": "*",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "†": "+",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "•": "*",
}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_LIKENESS.get(sign, "?") for sign in unknown), error.end


codecs.register_error(PLAIN, _plain)


def forgiving_streams() -> None:
    """Let this process print what its consoles' encodings lack, as replacements."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", "") == "strict":
            reconfigure(errors=PLAIN)


class _Forgiving:
    """A text stream to which everything can be written."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:
            # the error of a code page calls every one of them "charmap"
            encoding = getattr(self._stream, "encoding", None) or error.encoding
            return self._stream.write(text.encode(encoding, PLAIN).decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ForgivingConsole(Console):
    """A console for programs that import this package and have a stream of their own."""

    @property
    def file(self) -> IO[str]:
        """Where it writes: `sys.stdout` of the moment unless another file was given."""
        return _Forgiving(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


console = ForgivingConsole()


def printable(text: str) -> str:
    """A text without the halves of characters that file names of other encodings hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def notice(text: str) -> None:
    """A line that the user should see, whatever it contains."""
    console.print(text, style="yellow", markup=False, highlight=False)


class LineProgress(Progress):
    """A display for files and pipes: a line at the start of a task, now and then, and at the end.

    The same calls as of rich's `Progress`, of which it keeps the arithmetic.
    """

    def __init__(self, *, console: Console) -> None:
        super().__init__(console=console, disable=True, auto_refresh=False)
        self._said: dict[TaskID, float] = {}

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """As of `Progress`, and the first line."""
        task = super().add_task(*args, **kwargs)
        self._say(task)
        return task

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As of `Progress`, and a line if it is time for one or the task is done."""
        super().update(task_id, **changes)
        self._say_now_and_then(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As of `Progress`, and a line if it is time for one or the task is done."""
        super().advance(task_id, advance)
        self._say_now_and_then(task_id)

    def stop(self) -> None:
        """The last line of every task that is not done."""
        for task in self._tasks.values():
            if not task.finished:
                self._say(task.id)

    def _say_now_and_then(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        last = self._said[task_id]
        # once it is done there is nothing more to say (infinity), whatever is updated afterwards
        if last != float("inf") and (task.finished or time.monotonic() - last >= EVERY):
            self._say(task_id)
            if task.finished:
                self._said[task_id] = float("inf")

    def _say(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        self._said[task_id] = time.monotonic()
        total = "?" if task.total is None else f"{task.total:.0f}"
        parts = [f"{task.description} {task.completed:.0f}/{total}"]
        if task.elapsed and task.completed:
            parts.append(_clock(task.elapsed))
            if task.time_remaining and not task.finished:
                parts.append(f"eta {_clock(task.time_remaining)}")
        if task.fields.get("note"):
            parts.append(str(task.fields["note"]))
        self.console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def bar(show: bool = True) -> Progress:
    """A progress display with count, elapsed and remaining time; use as a context manager."""
    if show and not (console.is_terminal or console.is_jupyter):
        return LineProgress(console=console)
    return Progress(
        SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        disable=not show,
    )
