"""Times of the GPU kernels by a model of their clocks. MODELLED: nothing here was measured.

python -m benchmarks.modelled_times            # write results/modelled-times.json and .md
python -m benchmarks.modelled_times --check    # fail if they are not what the kernels' models say

A backend has a function in `BACKENDS`, which gives its rows; where one cannot be asked (its module
is not built) its rows stay as they are. The kernels choose their tiles by these same models, which
are two: ``csrc/sm90/tile_cost.h`` and ``grad_u_cost.h``, and ``kernels/tiles/cost.py``. Both state
their guesses; their difference is no measurement. ``kernels/tiles/rotation.py`` adds shared memory
and waits to the second, on an H100, as counted in what Triton 3.9 compiles.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from infodisent.backends.cuda import module as cuda
from infodisent.bench.shapes import AT_224, OTHERS, MapSize
from infodisent.files import read_json, write_text

RESULTS = Path(__file__).parent / "results"
PROCESSORS = 132
"""Multiprocessors of an H100 SXM."""
FLOPS, BYTES = 800e12, 3.0e12
"""Of bfloat16 and of memory, a second: what large products reach, not what the data sheet says."""
CLOCK = FLOPS / (PROCESSORS * 4096)
"""Hertz at which the tensor cores, 2048 multiply-adds a clock, have `FLOPS`: 1.48 GHz."""
BATCHES = (1, 8, 64, 256)
CLASSES = 1000
PEERS = {  # at B = 256: (one product and one reduction, eager)
    "resnet50": (152.0, 281.0),
    "resnet34": (15.4, 55.0),
    "densenet121": (44.0, 113.0),
    "convnext_large": (90.0, 189.0),
    "vit_base_patch16_224": (103.0, 293.0),
    "swin_small_patch4_window7_224": (27.0, 82.0),
}
"""Modelled times of what PyTorch does at these sizes, in microseconds: a product and the best that
a compiler makes of the rest, and operator by operator."""


class Row(NamedTuple):
    """What the model says of one operator on one map, in bfloat16.

    Attributes:
        choice: the tile, and what else was chosen.
        blocks: thread blocks that run at a time.
        waves: units of work that the busiest of them has, one after the other.
        filled: tiles / (waves · multiprocessors): what is not idle.
        clocks: until the last block ends.
        microseconds: these at `CLOCK`, or what memory takes where that is longer.
        floor: the longer of what arithmetic and memory take at least, in microseconds.
    """

    backend: str
    operator: str
    map: str
    batch: int
    choice: str
    blocks: int
    waves: int
    filled: float
    clocks: int
    microseconds: float
    floor: float


class Floor(NamedTuple):
    """Least microseconds."""

    arithmetic: float
    memory: float


def floor_of(size: MapSize, batch: int) -> Floor:
    """Of a product of a map [B, P, C] with a matrix [C, C]: each is moved once, in bfloat16."""
    elements = batch * size.pixels * size.channels
    arithmetic = 2.0 * elements * size.channels / FLOPS
    memory = 2.0 * (elements + size.channels**2) / BYTES
    return Floor(arithmetic * 1e6, memory * 1e6)


def row(
    backend: str,
    operator: str,
    name: str,
    size: MapSize,
    batch: int,
    choice: str,
    tiles: int,
    blocks: int,
    waves: int,
    clocks: float,
) -> Row:
    floor = floor_of(size, batch)
    microseconds = max(clocks / CLOCK * 1e6, floor.memory)
    return Row(
        backend,
        operator,
        name,
        batch,
        choice,
        blocks,
        waves,
        round(tiles / (waves * PROCESSORS), 3),
        round(clocks),
        round(microseconds, 1),
        round(max(floor), 1),
    )


def sizes() -> Iterator[tuple[str, MapSize]]:
    """A name for every size of the table of shapes; the names of the same size are one."""
    seen = set()
    for name, size in {**AT_224, **OTHERS}.items():
        if name in PEERS or (size.channels, size.pixels) not in seen:
            yield name, size
        seen.add((size.channels, size.pixels))


def cuda_rows() -> list[Row] | None:
    """Forward and gradient of U by the Hopper kernels; None where the module is not built."""
    if cuda._load() is not None:
        return None
    module, rows = cuda._module, []
    for name, size in sizes():
        for batch in BATCHES:
            of_map = batch, size.pixels, size.channels, size.pixels
            problem = module.Problem(*of_map, -(-size.channels // 64))
            tile = module.choose_tile(problem, PROCESSORS)
            cluster = module.choose_cluster(problem, tile, PROCESSORS)
            cost = module.tile_cost(tile, cluster, problem, PROCESSORS)
            choice = module.tiles[tile][0] + (", pairs" if cluster == 2 else "")
            rows.append(row("cuda", "forward", name, size, batch, choice, *cost))
            cluster, splits = module.choose_grad_u(*of_map, PROCESSORS)
            cost = module.grad_u_cost(*of_map, cluster, splits, PROCESSORS)
            choice = f"{splits} parts" + (", pairs" if cluster == 2 else "")
            tiles = -(-size.channels // 128) * -(-size.channels // 256) * splits
            rows.append(row("cuda", "dU", name, size, batch, choice, tiles, *cost))
    return rows


def triton_rows() -> list[Row] | None:
    """Forward and gradient of U of half maps by the Triton kernels; None without Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    return _triton_forward() + _triton_scores() + _triton_grad_u() + _triton_rotation()


def _triton_scores() -> list[Row]:
    """Of the head's second launch, three products of float32 parts; U and the map are not in it."""
    from infodisent.kernels.tiles import infodisent_head as tiles_of
    from infodisent.kernels.tiles.blocks import Block

    rows, seen = [], set()
    for name, size in sizes():
        if size.channels in seen:  # pixels do not matter any more
            continue
        seen.add(size.channels)
        for batch in BATCHES:
            problem = batch, CLASSES, size.channels
            t = tiles_of.choose(*problem, "tf32x3", 90, PROCESSORS)
            block = Block(t.channels, t.columns, t.block_k, t.num_warps, t.num_stages)
            clocks = tiles_of.time(block, t.split, *problem, 90, PROCESSORS)
            items = tiles_of.count(block, batch, CLASSES) * t.split
            waves = -(-items // PROCESSORS)
            arithmetic = 3 * 2.0 * batch * CLASSES * size.channels / (FLOPS / 2)
            numbers = (2 * batch + CLASSES) * size.channels + batch * CLASSES
            floor = Floor(arithmetic * 1e6, 4.0 * numbers / BYTES * 1e6)
            choice = f"{t.channels}x{t.columns}" + (f", {t.split} parts" if t.split > 1 else "")
            rows.append(
                Row(
                    "triton", f"scores of {CLASSES} classes", name, batch, choice,
                    min(items, PROCESSORS), waves, round(items / (waves * PROCESSORS), 3),
                    round(clocks), round(max(clocks / CLOCK * 1e6, floor.memory), 1),
                    round(max(floor), 1),
                )
            )  # fmt: skip
    return rows


def _triton_rotation() -> list[Row]:
    """Of one product of the rotation, in float32: each form and tile that serves.

    What "parts" needs before it is in a row of its own: of both operands a read, and a write of
    twice as much. They are "chosen" among the tiles of one form.
    """
    from infodisent.kernels.tiles import rotation as tiles_of
    from infodisent.kernels.tiles.blocks import serving

    rows = []
    for symmetric, channels in itertools.product((False, True), (512, 1024, 2048)):
        arithmetic = (3 if symmetric else 6) * channels**3 / (FLOPS / 2) * 1e6
        floor = Floor(arithmetic, 12.0 * channels**2 / BYTES * 1e6)
        written = 24.0 * channels**2 / BYTES
        operator = f"{'symmetric ' * symmetric}product of the rotation"
        for form in ("tf32x3", "parts"):
            chosen = tiles_of.choose(channels, form, symmetric, 90, PROCESSORS)
            for tile in dict.fromkeys(serving(tiles_of.BLOCKS, channels, form, 90)):
                tiles = tiles_of.count(tile, channels, symmetric)
                clocks = tiles_of.time(tile, channels, form, symmetric, 90, PROCESSORS)
                choice = f"{form}, {tile.block_m}x{tile.block_n}x{tile.block_k}"
                choice += ", chosen" if tile == chosen else ""
                before = {"": 0.0} if form == "tf32x3" else {"": 0.0, ", and written": written}
                for word, seconds in before.items():
                    rows.append(
                        _of_rotation(
                            operator, channels, choice + word, tiles, clocks, seconds, floor
                        )
                    )
    return rows


def _of_rotation(
    operator: str,
    channels: int,
    choice: str,
    tiles: int,
    clocks: float,
    seconds: float,
    floor: Floor,
) -> Row:
    """A row of `_triton_rotation`; seconds: of launches before, whose clocks are in it, too."""
    waves = -(-tiles // PROCESSORS)
    clocks += seconds * CLOCK
    return Row(
        "triton", operator, f"C = {channels}", 1, choice, min(tiles, PROCESSORS), waves,
        round(tiles / (waves * PROCESSORS), 3), round(clocks),
        round(max(clocks / CLOCK * 1e6, floor.memory), 1), round(max(floor), 1),
    )  # fmt: skip


def _triton_grad_u() -> list[Row]:
    from infodisent.kernels.tiles import rotate_pool_backward as tiles_of
    from infodisent.kernels.tiles.blocks import pick

    rows = []
    for name, size in sizes():
        tile = pick(tiles_of.GRAD_U, size.channels, "half", 90)
        cut = tiles_of.cut_u(
            size.pixels, "half", tile, size.pixels * size.channels, size.channels
        )  # fmt: skip
        image = tiles_of.image_clocks(cut, "half", tile)
        for batch in BATCHES:
            parts = tiles_of.splits(batch, size.channels, cut, "half", tile, PROCESSORS)
            clocks = tiles_of.clocks(parts, batch, size.channels, image, tile, PROCESSORS)
            tiles = -(-size.channels // tile.block_m) * -(-size.channels // tile.block_n) * parts
            choice = f"{tile.block_m}x{tile.block_n}, {parts} parts, "
            choice += f"{cut.pieces} x {cut.rows} rows a step"
            numbers = tiles, min(tiles, PROCESSORS), -(-tiles // PROCESSORS), clocks
            rows.append(row("triton", "dU", name, size, batch, choice, *numbers))
    return rows


def _triton_forward() -> list[Row]:
    from infodisent.kernels.tiles import cost
    from infodisent.kernels.tiles import rotate_pool as tiles_of

    rows = []
    for name, size in sizes():
        for batch in BATCHES:
            problem = batch, size.pixels, size.channels
            tiles = tiles_of.choose(*problem, "half", 90, PROCESSORS)
            count = tiles_of.count(tiles, *problem) * tiles.split
            room = PROCESSORS * cost.residents(
                tiles, tiles_of.work(size.pixels, size.channels, "half").size, 90, False
            )
            clocks = tiles_of.clocks(tiles, *problem, "half", 90, PROCESSORS)
            widths = "+".join(map(str, tiles.widths))
            choice = f"{tiles.channels}x{widths}"
            choice += f", {tiles.split} parts" if tiles.split > 1 else ""
            choice += ", persistent" if tiles.persistent else ""
            # a multiprocessor's programs take turns on its matrix unit: a wave is a program each
            blocks, waves = min(count, room), -(-count // PROCESSORS)
            numbers = count, blocks, waves, clocks
            rows.append(row("triton", "forward", name, size, batch, choice, *numbers))
    return rows


BACKENDS: dict[str, Callable[[], list[Row] | None]] = {
    "cuda": cuda_rows,
    "triton": triton_rows,
}


def stored() -> list[dict[str, Any]]:
    """The rows of the file."""
    path = RESULTS / "modelled-times.json"
    return list(read_json(path)["rows"]) if path.is_file() else []


def modelled() -> list[dict[str, Any]]:
    """All rows: those of backends that cannot be asked are the stored ones."""
    rows = []
    for name, rows_of in BACKENDS.items():
        own = rows_of()
        old = (r for r in stored() if r["backend"] == name)
        rows += list(old) if own is None else [r._asdict() for r in own]
    return rows


HEAD = f"""# Modelled times of the GPU kernels

**MODELLED, not measured: no GPU has run these kernels.** Written by `benchmarks/modelled_times.py`
from the models by which the kernels choose their tiles; bfloat16 (the rotation: float32, by three
products of TF32 parts), an H100 SXM of {PROCESSORS}
multiprocessors at {CLOCK / 1e9:.2f} GHz (where its tensor cores have {FLOPS / 1e12:.0f} TFLOP/s)
and {BYTES / 1e12:.1f} TB/s. Launch and host time are not in it. "Filled": the share of
multiprocessors and waves that has a tile. "Floor": the longer of arithmetic and memory. "Peer" and
"eager": modelled too, one product and one reduction, and PyTorch operator by operator (forward at
B = 256).
"""
COLUMNS = ("map", "B", "choice", "blocks", "waves", "filled", "clocks", "µs", "floor", "µs / floor")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as tables, one an operator of a backend."""
    parts = [HEAD]
    for backend, operator in dict.fromkeys((r["backend"], r["operator"]) for r in rows):
        columns = (*COLUMNS, "peer", "eager") if operator == "forward" else COLUMNS
        lines = [f"## {backend}, {operator}\n", f"| {' | '.join(columns)} |"]
        lines.append("|" + "---|" * len(columns))
        for r in rows:
            if (r["backend"], r["operator"]) != (backend, operator):
                continue
            cells = [r["map"], r["batch"], r["choice"], r["blocks"], r["waves"]]
            cells += [f"{r['filled']:.0%}", r["clocks"], r["microseconds"], r["floor"]]
            cells.append(f"{r['microseconds'] / max(r['floor'], 0.1):.2f}")
            if operator == "forward":
                cells += PEERS.get(r["map"], ("", "")) if r["batch"] == 256 else ("", "")
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def files() -> dict[Path, str]:
    """The files, and what must be in them."""
    rows = modelled()
    facts = {"modelled": True, "measured": False, "processors": PROCESSORS, "hertz": round(CLOCK)}
    text = json.dumps(facts | {"rows": rows}, indent=1, ensure_ascii=False)
    return {
        RESULTS / "modelled-times.json": text + "\n",
        RESULTS / "modelled-times.md": markdown(rows),
    }


def main() -> None:
    """Write what is not as it must be, or name it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail instead")
    check = parser.parse_args().check
    for path, text in files().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.exit(f"{path.name}: out of date; run python -m benchmarks.modelled_times")
        write_text(path, text)


if __name__ == "__main__":
    main()
