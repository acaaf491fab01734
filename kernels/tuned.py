"""Results of a search for tiles: off unless asked for, kept in a file that can be shipped.

The search is `infodisent.kernels.rotate_pool.search` or ``infodisent tune``. Its results go to the
file that ``INFODISENT_TILES`` names, else to ``$XDG_CACHE_HOME/infodisent/tiles.json``; `lookup`
reads both, the named one first. A result serves the GPU, products and sizes it was found for; all
else takes the fixed table of `infodisent.kernels.tiles.rotate_pool`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from infodisent.files import cache_file, read_json, write_json

from .tiles.rotate_pool import Tiles

ENV = "INFODISENT_TILES"
_log = logging.getLogger("infodisent")


def default_file() -> Path:
    """Where results go if ``INFODISENT_TILES`` names no file."""
    return cache_file("tiles.json")


def target_file() -> Path:
    """Where results go."""
    named = os.environ.get(ENV)
    return Path(named) if named else default_file()


def key(device: torch.device, products: str, batch: int, pixels: int, channels: int) -> str:
    """What a result holds for."""
    return f"{_name(device)}, {products}, B={batch}, P={pixels}, C={channels}"


@functools.cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read(path: Path) -> dict[str, Tiles]:
    """The results in a file; what is not one is left out, with a warning."""
    try:
        entries = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("infodisent: tiles are not read: %s", error)
        return {}
    results: dict[str, Tiles] = {}
    for name, fields in entries.items() if isinstance(entries, dict) else ():
        try:
            results[name] = _tiles(fields)
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("infodisent: %s: %r are no tiles (%s)", path, name, error)
    return results


def _tiles(fields: dict[str, Any]) -> Tiles:
    """Tiles from a file, with every number checked: they become constants of a kernel."""
    tiles = Tiles(**{**fields, "widths": tuple(fields["widths"])})
    numbers = [tiles.channels, *tiles.widths, tiles.block_k, tiles.num_warps]
    if not all(isinstance(n, int) and n > 0 and n & (n - 1) == 0 for n in numbers):
        raise ValueError("sizes must be powers of two")
    if not 1 <= len(tiles.widths) <= 3:
        raise ValueError("one to three widths")
    rest = (tiles.images, tiles.num_stages - 1, tiles.split - 1, tiles.group - 1)
    if not all(isinstance(n, int) and n >= 0 for n in rest):
        raise ValueError("counts must be whole numbers")
    if tiles.persistent not in (False, True):
        raise ValueError("persistent must be true or false")
    if tiles.persistent and (tiles.split > 1 or tiles.images == 0):
        raise ValueError("a persistent program has whole images and all of their channels")
    return tiles


@functools.cache
def _results(named: str | None, default: Path) -> dict[str, Tiles]:
    return {**_read(default), **(_read(Path(named)) if named else {})}


def lookup(
    device: torch.device, products: str, batch: int, pixels: int, channels: int
) -> Tiles | None:
    """What a search found for this problem, or None.

    Every call of the kernels comes here, so what was found once is looked up by what could change.
    """
    named, cache = os.environ.get(ENV), os.environ.get("XDG_CACHE_HOME")
    return _found(named, cache, device, products, batch, pixels, channels)


@functools.lru_cache(maxsize=1024)
def _found(
    named: str | None,
    _cache: str | None,  # where `default_file` is
    device: torch.device,
    products: str,
    batch: int,
    pixels: int,
    channels: int,
) -> Tiles | None:
    results = _results(named, default_file())
    if not results:
        return None
    return results.get(key(device, products, batch, pixels, channels))


def remember(name: str, tiles: Tiles, path: Path | None = None) -> Path:
    """Add a result to the file."""
    path = path or target_file()
    entries = {k: dataclasses.asdict(v) for k, v in _read(path).items()}
    entries[name] = dataclasses.asdict(tiles)
    write_json(path, entries)
    _results.cache_clear()
    _found.cache_clear()
    return path


def fastest(
    candidates: list[Tiles],
    run: Callable[[Tiles], tuple[torch.Tensor, ...]],
    wrong: Callable[[tuple[torch.Tensor, ...]], str | None],
    measure: Callable[[Callable[[], Any]], float],
) -> tuple[Tiles, dict[Tiles, float]]:
    """The fastest of some tiles, and milliseconds of all that work and give what they should.

    wrong: what is wrong with results, or None. What does not compile is left out too.

    Raises:
        RuntimeError: none works.
    """
    times: dict[Tiles, float] = {}
    for tiles in candidates:
        try:
            reason = wrong(run(tiles))
            if reason is None:
                times[tiles] = measure(functools.partial(run, tiles))
                continue
        except Exception as error:
            # a candidate may ask for more registers or memory than there is: not an error here
            reason = str(error)
        _log.info("infodisent: %s: %s", tiles, reason.splitlines()[:1])
    if not times:
        raise RuntimeError("rotate_pool: none of the tiles works on this device")
    return min(times, key=times.__getitem__), times
