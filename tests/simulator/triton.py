"""Runs the Triton kernels, as compiled for a GPU that is not there, on a simulator of its PTX.

    python -m tests.simulator.triton [--arch 80 90] [--seeds 0 1 2] [--only TEXT ...] [--kinds]

The host code chooses tiles and arguments; each launch is compiled ahead of time and its PTX run on
the CPU: races, addresses, waits and reads of memory that nobody wrote are findings, and results are
judged by `infodisent.testing`. Seeds are orders in which warps and asynchronous copies may run;
with all of them the results must have the same bits. One line a problem; exit code 1 if anything is
wrong. ``--kinds`` runs every kind of tile of the package's own choice in place of the named ones.

The simulator (ptxsim) is no part of this repository: it is taken from `TOOLS` where that is there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.kernels import kernel_compile

TOOLS = Path(__file__).resolve().parents[3] / "shared" / "tools"
"""Where the simulator is looked for: beside the checkout."""
PROCESSORS = 8
"""Multiprocessors of the device that tiles are chosen for, and blocks at a time."""
Change = Callable[[str, str], str]
"""The PTX to run in place of some (kernel, PTX): a planted fault."""


def missing() -> str | None:
    """Why nothing can be simulated here, or None."""
    if not (TOOLS / "ptxsim" / "triton_host.py").exists():
        return "no simulator: shared/tools/ptxsim is not beside this checkout"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "nothing is compiled in Triton's interpreter"
    return None


RELU = re.compile(r"((?:@!?%p\d+\s+)?)max\.relu\.s32\s+(%r\d+), ([^,;]+), ([^,;]+);")


def _plain(ptx: str) -> str:
    """The same without ``max.relu.s32``, whose last step the simulator leaves out."""
    return RELU.sub(r"\1max.s32 \2, \3, \4; \1max.s32 \2, \2, 0;", ptx)


def _flat(value: Any, kind: Any) -> Iterator[tuple[Any, str]]:
    """(value, type) of all that is passed at run time of an argument."""
    if isinstance(kind, tuple):
        for one, its in zip(value, kind, strict=True):
            yield from _flat(one, its)
    elif kind != "constexpr":
        yield value, kind


class Launcher:
    """In place of Triton's: compiles for `arch` and executes on a device of the simulator."""

    compiled: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # noqa: RUF012  (one for all)

    def __init__(self, device: Any):
        self.device = device

    def __call__(self, kernel: Any, arguments: dict[str, Any], grid: Any) -> None:
        import triton
        from ptxsim import parse
        from ptxsim.triton_host import execute
        from triton.backends.compiler import GPUTarget

        source, _ = kernel_compile._source(kernel, arguments)
        options = kernel_compile._options(arguments)
        key = (
            self.device.arch, kernel.fn.__module__, kernel.__name__, str(source.signature),
            str(source.constants), str(source.attrs), str(options),
        )  # fmt: skip
        if key not in self.compiled:
            target = GPUTarget("cuda", self.device.arch, 32)
            binary = triton.compile(source, target=target, options=options)
            self.compiled[key] = binary, parse(_plain(binary.asm["ptx"]))
        binary, module = self.compiled[key]
        if self.device.change is not None:
            module = parse(_plain(self.device.change(kernel.__name__, binary.asm["ptx"])))
        values = [
            (value, kind, name)
            for name, of_all in source.signature.items()
            for value, kind in _flat(arguments[name], of_all)
        ]
        execute(self.device, kernel.__name__, binary, module, values, grid, arguments)


@contextlib.contextmanager
def simulated(arch: int, seed: int = 0, change: Change | None = None) -> Iterator[Any]:
    """In the block, Triton kernels run on the simulated device that it yields."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    from infodisent.kernels import device as gpu
    from ptxsim import Options, triton_host
    from triton.runtime.jit import JITFunction

    device = triton_host.Device(arch, Options(seed=seed))
    device.options.resident = PROCESSORS
    device.change = change
    launcher = Launcher(device)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        named = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        for parameter in self.params:
            if parameter.has_default:
                named.setdefault(parameter.name, parameter.default)
        launcher(self, named, grid)

    plain = gpu.capability, gpu.processors
    with triton_host.simulated(device):  # undoes all that is done to JITFunction.run
        JITFunction.run = run
        gpu.capability, gpu.processors = lambda _: arch, lambda _: PROCESSORS
        try:
            yield device
        finally:
            gpu.capability, gpu.processors = plain


def _bits(results: Sequence[Tensor]) -> list[bytes]:
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in results]


Case = Callable[[int], Sequence[Tensor]]
"""Of the architecture: runs the host code and judges; what it computed."""


def lines(
    cases: dict[str, Case], archs: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[bool, str]]:
    """(whether all was right, what to print) of each case, architecture and seed."""
    for arch, (name, case) in itertools.product(archs, cases.items()):
        first: list[bytes] | None = None
        for seed in seeds:
            start, wrong = time.perf_counter(), ""
            with simulated(arch, seed) as device:
                try:
                    bits = _bits(case(arch))
                    first = first or bits
                    if bits != first:
                        wrong = " WRONG: other bits than with another seed"
                except Exception as error:  # of one case: the others are run all the same
                    wrong = f" WRONG: {type(error).__name__}: {error}"
            found = f"\n{device.findings}" if len(device.findings) else ""
            launched = [entry["kernel"] for entry in device.launches]
            count = sum(entry["instructions"] for entry in device.launches)
            seconds = time.perf_counter() - start
            text = f"sm_{arch} seed {seed} {name}{wrong} [{len(launched)} launches, "
            yield (
                not wrong and not found and bool(launched),
                f"{text}{count} instructions, {seconds:.0f} s]{found}",
            )


def main() -> int:
    """The exit code: 1 if anything is wrong."""
    from tests.simulator import triton_cases

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="problems whose names have one of these")
    parser.add_argument("--kinds", action="store_true", help="every kind of tile")
    options = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
    torch.set_num_threads(1)
    bad = 0
    for arch in options.arch:
        cases = triton_cases.kinds(arch) if options.kinds else triton_cases.CASES
        wanted = {
            name: case
            for name, case in cases.items()
            if not options.only or any(part in name for part in options.only)
        }
        for good, line in lines(wanted, [arch], options.seeds):
            print("PASS" if good else "FAIL", line, flush=True)
            bad += not good
    print(f"{bad} problems with findings")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
