"""Writing files so that a killed process never leaves a half-written one under its final name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import tempfile
import traceback
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it if the block succeeds, removed if not.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.{_host()}-{os.getpid()}-", suffix=path.suffix
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600, a user expects the usual mode
        os.replace(temporary, path)
    except OSError as error:
        # a full disk names no file, and the temporary one is nobody's business
        if error.errno is None or error.filename not in (None, name, temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[^.-]+(\..*)?")
"""What `replacing` calls a file: machine and process stand in its name."""


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove what processes of this machine that were killed had begun to write in a folder."""
    for path in Path(folder).glob(".*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and found[1] == _host() and not _runs(int(found[2])):
            path.unlink(missing_ok=True)


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _runs(process: int) -> bool:
    """Whether there is such a process; where the system does not tell, yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_file(name: str) -> Path:
    """Where the package keeps what it found out about a machine: under ``$XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "infodisent" / name


def size_text(count: float) -> str:
    """Bytes for people: "1.5 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file at once or not at all."""
    with replacing(path) as temporary:
        # names of files may hold bytes that are no text of theirs
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file at once or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Any = None
) -> None:
    """Write a safetensors file at once or not at all; `metadata` is any JSON value."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        if flat.untyped_storage().data_ptr() in seen:
            flat = flat.clone()  # tied weights: the format refuses tensors that share memory
        seen.add(flat.untyped_storage().data_ptr())
        owned[name] = flat
    with replacing(path) as temporary:
        try:
            save_file(owned, temporary, metadata={"infodisent": json.dumps(metadata)})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """Read a safetensors file written by `write_tensors`: the tensors, mapped, and the metadata.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, not a safetensors file, or not one of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    tensors, metadata = read_safetensors(path)
    if "infodisent" not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not one that infodisent wrote")
    try:
        return tensors, json.loads(metadata["infodisent"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of any safetensors file, mapped, and its metadata as they are.

    Raises:
        ValueError: it is truncated or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    return tensors, metadata


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what a file of the wrong contents raises into a ValueError that names the file."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        if _importing(error):  # of a library that is not as it should be
            raise
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} does not hold what it should ({what})") from error


def _importing(error: BaseException) -> bool:
    """Whether an error was raised while a module was imported."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename.startswith("<frozen importlib") for frame, _ in frames)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        ValueError: another process holds it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ModuleNotFoundError:  # no such locks on this platform
            pass
        except OSError as error:
            raise ValueError(f"{folder} is in use by another process") from error
        yield
