"""One line for whatever went wrong: what it was, and what helps."""

from __future__ import annotations

import errno

TRACEBACK = "INFODISENT_TRACEBACK"
"""Environment variable: "1" shows the traceback of an error as Python does."""

_HELP = {
    errno.ENOSPC: "make room or give another folder (--out); the same command then goes on",
    errno.EDQUOT: "make room or give another folder (--out); the same command then goes on",
    errno.EACCES: "give a folder that may be written and files that may be read",
    errno.EPERM: "give a folder that may be written and files that may be read",
    errno.EROFS: "give a folder that may be written (--out)",
    errno.EMFILE: "raise the limit (ulimit -n) or use fewer --workers",
    errno.ENAMETOOLONG: "give a shorter path",
}


def one_line(error: Exception) -> str:
    """An error for people.

    What this package says itself is ready. What the system, torch or another library says is
    shortened to its first line and gets what helps, or how to see more.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"{_first_line(error)} (out of memory: use smaller batches or fewer --workers)"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        helping = _HELP.get(error.errno)
        return f"{error.strerror}{where}" + (f" ({helping})" if helping else "")
    if isinstance(error, ModuleNotFoundError) and not _is_ours(error):
        return f"{_first_line(error)}, which {_importer(error)} imports: install the package"
    ours = (ValueError, FileNotFoundError, ModuleNotFoundError, NotImplementedError)
    if isinstance(error, ours) or _is_ours(error):
        return str(error)
    return f"{_first_line(error)} (the traceback: {TRACEBACK}=1)"


def _is_ours(error: Exception) -> bool:
    """Whether this package raised it, and not what it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.split(".")[0] == "infodisent" and not isinstance(
        error, (KeyError, AttributeError, IndexError, AssertionError)
    )


def _importer(error: ModuleNotFoundError) -> str:
    """The file whose import failed."""
    trace, file = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        file = file if name.startswith("<") else name  # Python's own importer is "<frozen …"
        trace = trace.tb_next
    return file


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
