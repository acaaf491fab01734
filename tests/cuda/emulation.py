"""Builds the emulator: the sources of csrc/sm90 for a CPU, with switches for planted faults."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda.common import CSRC, tool

FOLDER = Path(__file__).with_name("emulator")
KERNELS = ("rotate_pool", "rotate_pool_backward", "rotate_pool_float8", "channels_last")

RING, FORWARD, GRAD = "ring.cuh", "rotate_pool_kernel.cuh", "rotate_pool_backward_kernel.cuh"
Edit = tuple[str, str, str]
"""A file, an expression or statement that is in it once, and what takes its place."""
FAULTS: dict[str, tuple[str, tuple[Edit, ...]]] = {
    # arrivals from the other block are not waited for
    "own": (
        "",
        (
            (RING, "READERS * CLUSTER", "READERS"),
            (RING, "lane < CLUSTER", "lane == static_cast<int>(cluster_rank())"),
        ),
    ),
    # a slot is free when half of its readers have read it
    "half": ("", ((RING, "READERS * CLUSTER", "READERS * CLUSTER / 2"),)),
    # a block ends before the other is done with it
    "drain": ("has ended", ((RING, "i < STAGES", "i < 0"),)),
    "parity": ("deadlock", ((RING, "at.parity ^ 1", "at.parity"),)),
    # warpgroups do not take turns
    "turn": ("", ((FORWARD, "wait(ring.turn(group), turn_parity);", ";"),)),
    # slots are given back before they are read
    "late": ("", ((FORWARD, "wgmma_wait<1>();", "wgmma_wait<2>();"),)),
    "late dU": ("", ((GRAD, "wgmma_wait<1>();", "wgmma_wait<2>();"),)),
    # accumulators are read before they are written
    "early": ("", ((FORWARD, "wgmma_wait<0>();", "wgmma_wait<1>();"),)),
    "bytes": ("", ((FORWARD, "U_BYTES + a.box_bytes", "U_BYTES"),)),
    "rows": ("not that of the product", ((FORWARD, "row + rank * HALF", "row"),)),
    "registers": (
        "deadlock",
        ((FORWARD, "more_registers<kConsumerRegisters>();", "more_registers<248>();"),),
    ),
    # the highest of equal pixels
    "ties": (
        "not that of the product",
        (
            (
                "packed_key.h",
                "mask - static_cast<uint32_t>(pixel)",
                "static_cast<uint32_t>(pixel)",
            ),
        ),
    ),
    # of the images in a tile only the first
    "run": (
        "not that of the product",
        (
            (
                "tile_schedule.h",
                "(skip + columns - 1) / layout.pitch + 1",
                "(skip + columns - 1) / layout.pitch",
            ),
        ),
    ),
    # rows between images count as pixels
    "pitch": ("not that of the product", ((FORWARD, "shift -= pitch", "shift -= a.pixels"),)),
    # what the other blocks have of an image is not waited for
    "exchange": (
        "a block that has ended",
        ((FORWARD, "wait_for_cluster(ring.sent(), 0);", ";"),),
    ),
    # and goes to the wrong rows
    "entry": (
        "not that of the product",
        ((FORWARD, "part * kPartRows + row", "part * kPartRows"),),
    ),
    # words at the end of a run
    "run of pixels": (
        "another place",
        (("channels_last.cu", "first + i < count", "first + i < count - 1"),),
    ),
    # two winners in one pixel
    "both": ("not the sum", (("grad_u_schedule.h", "neg = -1;", ";"),)),
    # winners of the image that begins in a piece
    "next": (
        "not the sum",
        ((GRAD, "backward::fragment(after[i % 2], backward::row_of_register(i))", "0u"),),
    ),
    # winners of an image of another part of the batch
    "part": ("not the sum", ((GRAD, "image < last", "image < a.images"),)),
    # sums that an Inf elsewhere has spoilt
    "again": ("not the sum", ((GRAD, "check != 0.0f", "false"),)),
    # rows of what has overflowed, too
    "overflow": (
        "added up again",
        ((GRAD, "skipped = overflowed(a, unit, row);", "skipped = false;"),),
    ),
    "blocks": (
        "not the sum",
        ((GRAD, "backward::descriptor_step(k)", "backward::descriptor_step(k) / 2"),),
    ),
    "context": (
        "another context",
        (("host.h", "make_current != nullptr", "make_current != nullptr && before_ != nullptr"),),
    ),
    "error": (
        "an earlier call is reported",
        (
            (
                "host.h",
                "return {cudaLaunchKernelEx(&config, kernel, arguments...), what};",
                "cudaLaunchKernelEx(&config, kernel, arguments...);"
                " return {cudaGetLastError(), what};",
            ),
        ),
    ),
}
"""What can be wrong in csrc/sm90, by name: a part of the report that must come, and the edits."""
SERIAL: dict[str, tuple[Edit, ...]] = {
    # the next tile's products start after a pool and not beside it
    "serial": (
        (FORWARD, "if (lane == 0) arrive(ring.turn(group ^ 1));", ";"),
        (
            FORWARD,
            "unit += kGroups * clusters",
            "(lane == 0 ? arrive(ring.turn(group ^ 1)) : void()), unit += kGroups * clusters",
        ),
    ),
}
"""What leaves results as they are, and only takes longer."""


def planted(text: str, name: str, old: str, new: str) -> str:
    """The source with a switch between what it says and the fault."""
    assert text.count(old) == 1, f"{name}: {old!r} is there {text.count(old)} times"
    switch = f'::infodisent::emulator::fault("{name}")'
    if old.endswith(";"):
        return text.replace(old, f"if ({switch}) {{ {new} }} else {{ {old} }}")
    return text.replace(old, f"({switch} ? ({new}) : ({old}))")


def write_sources(folder: Path) -> list[Path]:
    """Copies of csrc/sm90 with all faults, switched off; ptx.cuh is the emulator's. C++ sources."""
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted((CSRC / "sm90").iterdir())
        if path.suffix in (".h", ".cuh", ".cu")
    }
    every = {name: edits for name, (_, edits) in FAULTS.items()} | SERIAL
    for name, edits in every.items():
        for file, old, new in edits:
            texts[file] = planted(texts[file], name, old, new)
    texts["ptx.cuh"] = (FOLDER / "ptx.cuh").read_text(encoding="utf-8")
    for name, text in texts.items():
        path = folder / name
        path = path.with_suffix(".cpp") if path.suffix == ".cu" else path
        path.write_text(text, encoding="utf-8")
    return [folder / f"{kernel}.cpp" for kernel in KERNELS] + sorted(FOLDER.glob("*.cpp"))


def headers_of_cuda() -> str:
    """Where nvcc has them; it may be a link or a script elsewhere."""
    nvcc = tool("nvcc")
    if nvcc is None:
        pytest.skip("needs the headers of CUDA")
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    dry = subprocess.run(command, capture_output=True, text=True).stderr
    top = next((line[7:] for line in dry.splitlines() if line.startswith("#$ TOP=")), "")
    return str(Path(top or Path(nvcc).resolve().parents[1], "include"))


def build(folder: Path) -> Path:
    """The program: half a minute of one processor, or as many as there are."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    sources = write_sources(folder)
    flags = ["-std=c++17", "-O1", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-psabi"]
    flags += [f"-I{path}" for path in (folder, CSRC, FOLDER, FOLDER.parent)]
    flags += ["-isystem", headers_of_cuda()]

    def compiled(source: Path) -> str:
        target = str(folder / source.with_suffix(".o").name)
        kernels = source.stem in KERNELS  # unused there is what only nvcc uses
        more = ["-include", "kernel.h"] if kernels else ["-Wall", "-Wextra", "-Werror"]
        more += [] if kernels else ["-include", "device.h"]
        command = ["g++", *flags, *more, "-c", str(source), "-o", target]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "emulator"
    subprocess.run(["g++", *objects, "-o", str(program)], check=True)
    return program


def run(program: Path, problems: int, seed: int = 1, fault: str = "") -> tuple[int, str]:
    """Exit code and report of so many random problems."""
    command = [str(program), str(problems), str(seed), fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout


def beside_a_pool(program: Path, fault: str = "") -> tuple[int, int]:
    """Of rotate_pool: copies and products that began while another warpgroup was pooling."""
    command = [str(program), "-10", "2", fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    counts = re.search(r"(\d+) copies, (\d+) products beside a pool", done.stderr)
    assert counts is not None, done.stderr
    return int(counts[1]), int(counts[2])
