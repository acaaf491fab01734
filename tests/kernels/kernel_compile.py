"""Compiles for GPUs, without one, what the host code of a Triton kernel launches.

    python -m tests.kernels.kernel_compile rotation --arch 80 90 --size 512 2048 --products tf32x3

The host code runs on meta tensors with the launcher replaced by a recorder, so that what is
compiled is what is launched; then each distinct launch is compiled ahead of time. One JSON object a
launch and architecture is printed: registers and bytes of spills as ptxas reports them, shared
memory, what `tests.kernels.kernel_text.facts` reads off, and the first line of the error if it
failed.

It must run in a process without TRITON_INTERPRET: see `run`, which tests call.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.kernels import prototype_calls
from tests.kernels.kernel_text import facts, of_amd
from tests.kernels.kernel_types import aligned, like, specialize

SHARED_LIMIT = {
    80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10,
    942: 64 << 10, 950: 160 << 10,
}  # fmt: skip
"""Bytes of shared memory that one program may have, by architecture; from 900 on AMD's gfx."""


def _done(
    command: list[str], root: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run to the end, 20 times what it takes; a process that hangs fails the test."""
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=900
    )


def interpret(test_file: str) -> str:
    """Run a test file under Triton's interpreter, in another process; what pytest printed.

    Triton decides when a kernel is decorated, and its own library's when it is imported, which
    torchvision does: too early for a test.
    """
    command = [sys.executable, "-m", "pytest", test_file, "-p", "no:cacheprovider"]
    # where it hangs, the stack is in what is raised
    command += ["-o", "faulthandler_timeout=120"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = _done(command, root, environment)
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return done.stdout


def _rotation(size: int, products: str) -> None:
    from infodisent.kernels.rotation import rotation, rotation_backward

    a = torch.empty(size, size, device="meta")
    _, kept, numbers = rotation(a, "full", products)
    rotation_backward(a, a, kept, numbers, "full", products)


MAPS = ((256, 49), (64, 49), (256, 196), (8, 49), (1, 49), (64, 577), (1, 577))
"""(B, P) of the maps that the pooling kernels are compiled for."""


def _maps(size: int, products: str) -> Iterator[tuple[Tensor, Tensor]]:
    """x [B, P, C] of each of `MAPS` and u [C, C], in dtypes that the products are for."""
    dtype = torch.bfloat16 if products in ("half", "split") else torch.float32
    u = torch.empty(size, size, dtype=dtype if products == "half" else None, device="meta")
    for batch, pixels in MAPS:
        yield torch.empty(batch, pixels, size, dtype=dtype, device="meta"), u


def _rotate_pool(size: int, products: str) -> None:
    from infodisent.kernels.rotate_pool import rotate_pool

    for x, u in _maps(size, products):
        rotate_pool(x, u, products)
    rotate_pool(x.transpose(1, 2).contiguous().transpose(1, 2), u, products)


def _infodisent_head(size: int, products: str) -> None:
    from infodisent.kernels.infodisent_head import LAUNCHES, infodisent_head

    for x, u in _maps(size, products):
        weight = torch.empty(1000, size, dtype=x.dtype, device="meta")
        for launches in LAUNCHES:
            infodisent_head(x, u, weight, None, True, launches, products)


def _rotate_pool_backward(size: int, products: str) -> None:
    from infodisent.kernels.precision import GRADIENT_OF_HALF
    from infodisent.kernels.rotate_pool_backward import rotate_pool_backward

    dtype = torch.bfloat16 if products in GRADIENT_OF_HALF else torch.float32
    u = torch.empty(size, size, dtype=dtype, device="meta")
    grad = torch.empty(256, size, device="meta")
    for pixels in (49, 196):
        x = torch.empty(256, pixels, size, dtype=dtype, device="meta")
        rotate_pool_backward(grad, grad, x, u, grad.int(), grad.int(), True, True, products)


CALLS: dict[str, Callable[[int, str], None]] = {
    "rotation": _rotation,
    "rotate_pool": _rotate_pool,
    "infodisent_head": _infodisent_head,
    "rotate_pool_backward": _rotate_pool_backward,
    **{
        call.__name__: lambda size, products, call=call: call(_maps(size, products), products)
        for call in (
            prototype_calls.similarity_pool,
            prototype_calls.similarity_pool_backward,
            prototype_calls.softmax_pool,
            prototype_calls.softmax_alignment,
        )
    },
}
"""Host code of each operator, by stem: (size, products)."""


@contextlib.contextmanager
def recorder() -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Collects (kernel, arguments by name and options) of the launches in the block."""
    from triton.runtime.jit import JITFunction

    launches: list[tuple[Any, dict[str, Any]]] = []
    plain = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        launches.append((self, {**dict(zip(self.arg_names, args)), **kwargs}))

    JITFunction.run = run
    try:
        yield launches
    finally:
        JITFunction.run = plain


SHOWN = ("PARITY", "BLOCK", "BLOCK_M", "BLOCK_K", "images", "channels", "widths", "split")
"""Constants that tell launches of one kernel apart, beside those that are strings or true."""


def _constants(name: str, value: Any) -> Iterator[str]:
    """What is shown of a constant; of one that is a dataclass, of its fields."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _constants(field.name, getattr(value, field.name))
    elif isinstance(value, str):
        yield value
    elif value is True:
        yield name
    elif name in SHOWN:
        yield f"{name}={value}".replace(" ", "")


def _source(kernel: Any, arguments: dict[str, Any]) -> tuple[Any, list[str]]:
    """What Triton compiles for a recorded launch, and what to show of it."""
    from triton.compiler import ASTSource

    signature: dict[str, Any] = {}
    constants: dict[tuple, Any] = {}
    attributes: dict[tuple, Any] = {}
    shown: list[str] = []
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr:
            signature[name], constants[(i,)] = "constexpr", value
            shown += _constants(name, value)
            continue
        kind, constant, attribute = specialize(value, not parameter.do_not_specialize)
        signature[name] = kind
        constants.update({(i, *path): v for path, v in constant.items()})
        attributes.update({(i, *path): v for path, v in attribute.items()})
        if isinstance(value, tuple) and kernel.__name__ == "combine_kernel":
            shown.append(f"{name}={len(value)}")
        if name == "d" and value is not None:
            shown.append("d")
    return ASTSource(kernel, signature, constants, attributes), shown


def target(arch: int) -> Any:
    """Of NVIDIA, or from 900 on of AMD: 942 is gfx942."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", f"gfx{arch}", 64) if arch >= 900 else GPUTarget("cuda", arch, 32)


def _options(arguments: dict[str, Any]) -> dict[str, int]:
    return {k: arguments[k] for k in ("num_warps", "num_stages") if k in arguments}


def compile_launch(kernel: Any, arguments: dict[str, Any], arch: int) -> dict[str, Any]:
    """Compile one recorded launch."""
    import triton

    source, shown = _source(kernel, arguments)
    options = _options(arguments)
    launch = {
        "kernel": kernel.__name__, "what": " ".join(shown), "C": arguments.get("C", 16),
        "arch": arch, **options,
    }  # fmt: skip
    start = time.perf_counter()
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            compiled = triton.compile(
                source,
                target=target(arch),
                options=options,
            )
    except Exception as error:
        return {**launch, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    if "amdgcn" in compiled.asm:
        return {**launch, **of_amd(compiled.asm["amdgcn"]), "shared": compiled.metadata.shared,
                "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
    return {
        **launch,
        "registers": int(registers[1]),
        "spills": sum(map(int, spills)),
        "shared": compiled.metadata.shared,
        # ptxas: "wgmma.mma_async instructions are serialized due to ..."
        "serialized": "serialized" in log.getvalue(),
        **facts(compiled.asm["ttgir"], compiled.asm["ptx"]),
        "seconds": round(time.perf_counter() - start, 1),
    }


def with_ones(kernel: Any, arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(argument, all arguments) with each integer that is no constant set to 1 in turn."""
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr or parameter.do_not_specialize or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield name, {**arguments, name: 1}
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, int):
                    items = [*value[:i], 1, *value[i + 1 :]]
                    yield f"{name}[{i}]", {**arguments, name: like(value, items)}


def front_end(kernel: Any, arguments: dict[str, Any], arch: int) -> None:
    """Make a launch's IR and no more: what raises for the type of an argument does so here."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    options = backend.parse_options(_options(arguments))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source, _ = _source(kernel, arguments)
    implementation = backend.get_codegen_implementation(options)
    source.make_ir(target, options, implementation, backend.get_module_map(), context)


def compile_ones(stem: str, archs: list[int], sizes: list[int], products: list[str]) -> None:
    """A line for every launch and every integer that is 1: the launcher makes constants of them."""
    seen = set()
    for arch, size, product in itertools.product(archs, sizes, products):
        with recorder() as launches:
            CALLS[stem](size, product)
        for kernel, arguments in launches:
            for name, changed in with_ones(kernel, arguments):
                key = (kernel.__name__, *map(str, _key(kernel, changed)))
                if key in seen:
                    continue
                seen.add(key)
                line = {"kernel": kernel.__name__, "argument": name}
                try:
                    front_end(kernel, changed, arch)
                except Exception as error:
                    line["error"] = f"{type(error).__name__}: {str(error).splitlines()[-1]}"
                print(json.dumps(line), flush=True)


def compile_all(stem: str, archs: list[int], sizes: list[int], products: list[str]) -> None:
    """Compile every distinct launch and print a line each."""
    from infodisent.kernels import device
    from triton import knobs

    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True  # the cache has no log
    seen = set()
    for arch, size, product in itertools.product(archs, sizes, products):
        # tiles of the oldest matrix unit for AMD's, which nobody has chosen any for
        device.capability = lambda _, arch=arch: 80 if arch >= 900 else arch
        with recorder() as launches:
            CALLS[stem](size, product)
        for kernel, arguments in launches:
            key = (arch, kernel.__name__, *map(str, _key(kernel, arguments)))
            if key not in seen:
                seen.add(key)
                print(json.dumps(compile_launch(kernel, arguments, arch)), flush=True)


def _key(kernel: Any, arguments: dict[str, Any]) -> Iterator[Any]:
    """What tells launches apart once compiled."""
    plain = {p.name for p in kernel.params if p.do_not_specialize}
    constant = {p.name for p in kernel.params if p.is_constexpr} | {"num_warps", "num_stages"}
    for name, value in arguments.items():
        yield name, value if name in constant else _kind(value, name not in plain)


def _kind(value: Any, special: bool) -> Any:
    """What an argument that is no constant is compiled for."""
    if isinstance(value, tuple):
        return tuple(_kind(v, special) for v in value)
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, int):
        # sizes that are compiled alike are one
        return special and (value == 1, value % 16 == 0), -(2**31) <= value < 2**31
    return (value.dtype, aligned(value)) if isinstance(value, Tensor) else type(value)


def run(
    stem: str,
    archs: list[int],
    sizes: list[int],
    products: list[str],
    *,
    maps: Sequence[tuple[int, int]] = (),
    ones: bool = False,
) -> list[dict[str, Any]]:
    """Compile in another process, where Triton does not interpret.

    maps: (B, P) in place of `MAPS`; ones: `compile_ones`.
    """
    command = [sys.executable, "-m", "tests.kernels.kernel_compile", stem]
    for option, values in (("arch", archs), ("size", sizes), ("products", products)):
        command += [f"--{option}", *map(str, values)]
    if maps:
        command += ["--maps", *(f"{batch},{pixels}" for batch, pixels in maps)]
    command += ["--ones"] * ones
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[2]
    done = _done(command, root, environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stem", choices=CALLS)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--size", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--products", nargs="+", default=["tf32x3"])
    parser.add_argument("--maps", nargs="+", help="B,P instead of the usual ones")
    parser.add_argument("--ones", action="store_true", help="each integer 1 in turn, IR only")
    options = parser.parse_args()
    if options.maps:
        global MAPS
        MAPS = tuple(tuple(map(int, pair.split(","))) for pair in options.maps)
    work = compile_ones if options.ones else compile_all
    work(options.stem, options.arch, options.size, options.products)


if __name__ == "__main__":
    main()
