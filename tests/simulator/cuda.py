"""Runs the CUDA kernels, through their own host code and Python, on a simulator of their PTX.

    python -m tests.simulator.cuda [--seeds 0 1 2] [--only TEXT ...] [--build FOLDER]

nvcc compiles csrc/sm90 once; its host code is linked with `cuda_runtime.cpp` in the place of the
CUDA runtime, so tensor maps, grids, clusters and arguments are those of a GPU, and tensors on the
CPU stand in for its memory. Races, addresses, waits and reads of memory that nobody wrote are
findings. Seeds are orders in which warps and copies may run: with all of them results have the same
bits. One line a problem; exit code 1 if anything is wrong.

The simulator (ptxsim) is no part of this repository: it is taken from `TOOLS` where that is there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib.util
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infodisent.backends.cuda import module as native
from tests.cuda.common import CSRC, INCLUDES, tool
from tests.cuda.emulation import headers_of_cuda

TOOLS = Path(__file__).resolve().parents[3] / "shared" / "tools"
"""Where the simulator is looked for: beside the checkout."""
RUNTIME = Path(__file__).with_name("cuda_runtime.cpp")
KERNELS = ("rotate_pool", "rotate_pool_backward", "rotate_pool_float8", "channels_last")
LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_void_p),
)
FILL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)
Change = Callable[[str, str], str]
"""The PTX to run in place of some (kernel, PTX): a planted fault."""


def missing() -> str | None:
    """Why nothing can be simulated here, or None."""
    if not (TOOLS / "ptxsim" / "machine.py").exists():
        return "no simulator: shared/tools/ptxsim is not beside this checkout"
    if tool("nvcc") is None:
        return "needs nvcc"
    if importlib.util.find_spec("pybind11") is None:
        return "needs pybind11"
    return None


# --- what nvcc makes ---


def build(folder: Path | None = None) -> Path:
    """The folder with PTX and the module, made anew where a source has changed: some minutes."""
    sources = [RUNTIME, *sorted(CSRC.glob("*.h")), *sorted((CSRC / "sm90").iterdir())]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = (folder or Path(tempfile.gettempdir())) / f"infodisent-simulator-{digest}"
    if (folder / "_cuda.so").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda name: _compiled(name, folder), KERNELS))
    import pybind11

    headers = [headers_of_cuda(), pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *INCLUDES]
    command += [f"-I{path}" for path in headers]
    command += [str(CSRC / "sm90" / "bindings.cpp"), str(RUNTIME), *objects]
    subprocess.run([*command, "-o", str(folder / "new.so")], check=True)
    (folder / "new.so").rename(folder / "_cuda.so")
    return folder


def _compiled(name: str, folder: Path) -> str:
    """An object with the host code, and its PTX beside it, of one run, so that names agree."""
    target = folder / f"{name}.o"
    command = [str(tool("nvcc")), "-gencode=arch=compute_90a,code=compute_90a", "-O3", "-std=c++17"]
    command += ["-lineinfo", *INCLUDES, "-Xcompiler", "-fPIC", "--keep", "--keep-dir", str(folder)]
    subprocess.run(
        [*command, "-c", str(CSRC / "sm90" / f"{name}.cu"), "-o", str(target)], check=True
    )
    return str(target)


class Program:
    """The module `infodisent._cuda` without a GPU, and the text of its kernels."""

    def __init__(self, folder: Path):
        spec = importlib.util.spec_from_file_location("_cuda", folder / "_cuda.so")
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.library = ctypes.CDLL(str(folder / "_cuda.so"))
        self.texts = [(folder / f"{name}.ptx").read_text() for name in KERNELS]
        self.parsed: dict[str, Any] = {}

    def kernel(self, name: str, change: Change | None) -> Any:
        """The PTX of one kernel, parsed: what precedes all of them in its file, and itself."""
        from ptxsim import parse

        if change is None and name in self.parsed:
            return self.parsed[name]
        for text in self.texts:
            begin = re.search(rf"^.*\.entry {re.escape(name)}\b", text, re.M)
            if begin is None:
                continue
            end = re.compile(r"^\s*// \.globl|^\s*\.file|^\.(?:visible|weak|entry) ", re.M).search(
                text, begin.end()
            )
            first = re.search(r"^.*\.(?:entry|func)\b", text, re.M)
            assert first is not None
            body = text[begin.start() : end.start() if end else len(text)]
            files = re.findall(r"^\s*\.file.*$|^\.(?:extern )?\.?shared .*;$", text, re.M)
            before = text[: first.start()]
            # line numbers stay those of the file
            gap = "\n" * (text[: begin.start()].count("\n") - before.count("\n"))
            changed = body if change is None else change(name, body)
            behind = [line for line in files if line not in before]
            module = parse("\n".join([before + gap + changed, *behind]))
            if change is None:
                self.parsed[name] = module
            return module
        raise KeyError(name)


# --- the device ---


def storage_bytes(t: Tensor) -> np.ndarray:
    """The bytes of a tensor's storage, shared with it."""
    storage = t.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    return whole.numpy()


class Tensors(TorchDispatchMode):
    """All tensors of a problem, by the address of their storage, and which are only allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.all: dict[int, Tensor] = {}
        self.unwritten: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in (*args, *(out if isinstance(out, (tuple, list)) else (out,))):
            if isinstance(t, Tensor) and t.device.type == "cpu" and t.untyped_storage().nbytes():
                self.all.setdefault(t.untyped_storage().data_ptr(), t)
        empty = func.overloadpacket.__name__.startswith(("empty", "new_empty"))
        if empty and out.numel() and out.device.type == "cpu":
            storage_bytes(out)[:] = 0xFF
            self.unwritten.add(out.untyped_storage().data_ptr())
        return out


class Device:
    """In the place of `infodisent._cuda` and of a GPU: executes what the host code launches."""

    def __init__(self, program: Program, processors: int, seed: int, change: Change | None = None):
        from ptxsim import Findings, GlobalMemory, Options

        self.program, self.change, self.processors = program, change, processors
        self.options = Options(seed=seed, resident=16)
        self.memory, self.findings, self.tensors = GlobalMemory(), Findings(), Tensors()
        self.places: dict[int, int] = {}
        self.launches = 0
        self.error: BaseException | None = None
        self.callbacks = LAUNCH(self._launch), FILL(self._fill)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.program.module, name)
        if not callable(found) or name in ("Problem", "choose_tile", "choose_cluster", "pitch"):
            return found
        return lambda *arguments: self._call(found, arguments)

    def _call(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Runs a function of the host with the addresses that tensors have on the device."""
        self.program.library.simulator_connect(*self.callbacks, self.processors)
        moved = [self._address(a) if type(a) is int and a > 1 << 32 else a for a in arguments]
        self._copy(to_device=True)
        try:
            result = function(*moved)
        except RuntimeError:
            if self.error is not None:
                raise self.error from None
            raise
        self._copy(to_device=False)
        return result

    def _address(self, pointer: int) -> int:
        for base, t in self.tensors.all.items():
            size = t.untyped_storage().nbytes()
            if base <= pointer < base + size:
                if base not in self.places:
                    self.places[base] = self.memory.alloc(size, f"{tuple(t.shape)} {t.dtype}")
                return self.places[base] + pointer - base
        raise ValueError(f"{pointer:#x} is in no tensor")

    def _copy(self, to_device: bool) -> None:
        for base, at in self.places.items():
            raw = storage_bytes(self.tensors.all[base])
            if not to_device:
                raw[:] = self.memory.get(at, len(raw))
                continue
            written: Any = True
            if base in self.tensors.unwritten:  # but for what kernels have written
                start = at - self.memory.base
                written = (raw != 0xFF) | self.memory.init[start : start + len(raw)]
            self.memory.put(at, raw, written)

    def _fill(self, to: int, value: int, size: int) -> int:
        start = to - self.memory.base
        if not self.memory.valid[start : start + size].all():
            return 1
        self.memory.put(to, np.full(size, value, np.uint8))
        return 0

    def _launch(self, kernel: bytes, sizes: Any, cluster: int, shared: int, arguments: Any) -> int:
        from ptxsim import launch

        try:
            name = kernel.decode()
            module = self.program.kernel(name, self.change)
            block = b""
            for i, parameter in enumerate(module.functions[name].params):
                block += bytes(-len(block) % parameter.align)
                block += ctypes.string_at(arguments[i], parameter.size)
            grid, threads = tuple(sizes[:3]), tuple(sizes[3:6])
            launch(
                module, name, grid, threads, block, self.memory, shared=shared, cluster=cluster,
                options=self.options, findings=self.findings,
            )  # fmt: skip
            self.launches += 1
        except BaseException as error:  # it may not go through C++
            self.error = error
            return 1
        return 0


@contextlib.contextmanager
def simulated(
    program: Program, processors: int, seed: int = 0, change: Change | None = None
) -> Iterator[Device]:
    """In the block, the `cuda` backend's functions run on the simulated device that it yields."""
    device = Device(program, processors, seed, change)
    stand_ins = {
        "_module": device,
        "_missing": None,
        "device_objection": lambda device: None,
        "_where": lambda device: (0, 0),
        "_processors": lambda device: processors,
    }
    before = {name: getattr(native, name) for name in stand_ins}
    for name, value in stand_ins.items():
        setattr(native, name, value)
    try:
        with device.tensors:
            yield device
    finally:
        for name, value in before.items():
            setattr(native, name, value)


def connect() -> None:
    """Makes the simulator importable."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))


def lines(
    program: Program, cases: dict[str, Any], seeds: Sequence[int], change: Change | None = None
) -> Iterator[tuple[bool, str]]:
    """Whether a problem is right with a seed, and what there is to say of it."""
    for name, case in cases.items():
        bits: list[bytes] | None = None
        for seed in seeds:
            start, wrong = time.perf_counter(), ""
            with simulated(program, case.processors, seed, change) as device:
                try:
                    outputs = case.run()
                except Exception as error:  # a problem that fails does not stop the others
                    wrong, outputs = f"{type(error).__name__}: {error}", ()
            these = [t.contiguous().view(torch.uint8).numpy().tobytes() for t in outputs]
            if bits is None and not wrong:
                bits = these
            elif not wrong and these != bits:
                wrong = "other bits than with the first seed"
            kinds = device.findings.kinds() - case.allowed
            seconds = time.perf_counter() - start
            text = f"seed {seed} {name}: {device.launches} launches, {seconds:.0f} s"
            for finding in device.findings if kinds else ():
                wrong += f"\n  {finding}"
            good = not wrong and device.launches > 0
            yield good, f"{'clean' if good else 'WRONG'} {text} {wrong}"


def main() -> int:
    from tests.simulator.cuda_cases import CASES

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="problems with these in their name"
    )
    parser.add_argument("--build", type=Path, help="folder for what nvcc makes")
    options = parser.parse_args()
    reason = missing()
    if reason is not None:
        sys.exit(reason)
    connect()
    torch.set_num_threads(1)
    program = Program(build(options.build))
    wanted = options.only or [""]
    chosen = {n: c for n, c in CASES.items() if any(text in n for text in wanted)}
    results = []
    for good, line in lines(program, chosen, options.seeds):
        print(line, flush=True)
        results.append(good)
    print(f"{results.count(True)} of {len(results)} clean")
    return 0 if all(results) and results else 1


if __name__ == "__main__":
    sys.exit(main())
