"""What the tests of the CUDA kernels share: nvcc's machine code taken apart, and models built."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from infodisent.backends.cuda import module as cuda

CSRC = Path(__file__).parents[2] / "csrc"
INCLUDES = (f"-I{CSRC}", f"-I{CSRC / 'sm90'}")
REGISTERS = 168  # of the 65536 for each of 384 threads; setmaxnreg moves them to the consumers

needs_module = pytest.mark.skipif(cuda._load() is not None, reason=cuda._missing or "built")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, or the copy that Triton comes with."""
    folders = [os.environ[n] + "/bin" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.submodule_search_locations:
        folders.append(f"{triton.submodule_search_locations[0]}/backends/nvidia/bin")
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


def build_model(source: str, folder: Path) -> Path:
    """The program of a CPU model, with the sanitizer for undefined behaviour."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = folder / "model"
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-fsanitize=undefined"]
    command += ["-fno-sanitize-recover=all", *INCLUDES, "-o", str(program)]
    built = subprocess.run(
        [*command, str(Path(__file__).with_name(source))], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    return program


def check_model(program: Path) -> None:
    """The model has nothing to report."""
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert (ran.returncode, ran.stdout) == (0, "clean\n"), ran.stdout + ran.stderr


def compile_source(source: str, folder: Path) -> tuple[Path, str]:
    """Machine code of one file of csrc/sm90, and what ptxas printed."""
    nvcc = tool("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    cubin = (folder / source).with_suffix(".cubin")
    command = [nvcc, "-gencode=arch=compute_90a,code=sm_90a", "-O3", "-std=c++17", "-lineinfo"]
    command += ["-Xptxas", "-v", "-cubin", *INCLUDES, "-o", str(cubin)]
    done = subprocess.run([*command, str(CSRC / "sm90" / source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cubin, done.stderr


def resources(log: str) -> dict[str, str]:
    """What ptxas says of each kernel, by its mangled name."""
    parts = re.split(r"ptxas info\s+: Compiling entry function '", log)[1:]
    return dict(part.split("'", 1) for part in parts)


def check_resources(log: str, kernel: str, count: int) -> None:
    """Nothing spills, and registers suffice for one block of 384 threads of `kernel`."""
    # C7508: setmaxnreg ignored. C7510: products one after the other.
    assert "warning" not in log.lower(), log
    every = resources(log)
    products = {name: text for name, text in every.items() if kernel in name}
    assert len(products) == count
    for name, text in every.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in text, name + text
        registers = int(re.search(r"Used (\d+) registers", text)[1])
        assert registers <= REGISTERS, name
    for name, text in products.items():
        assert f"Used {REGISTERS} registers" in text, name


def functions(cubin: Path) -> dict[str, str]:
    """Machine code of each kernel, by its mangled name. None of them touches local memory."""
    cuobjdump = tool("cuobjdump")
    if cuobjdump is None or tool("nvdisasm") is None:
        pytest.skip("needs cuobjdump and nvdisasm")
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])
    done = subprocess.run(
        [cuobjdump, "-sass", str(cubin)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    texts = re.split(r"Function : ", done.stdout)[1:]
    kernels = {text.split(None, 1)[0]: text for text in texts}
    for name, text in kernels.items():
        assert not re.search(r"\b(LDL|STL)\b", text), name
    return kernels


def check_copies_and_loop(name: str, text: str, product: str, copies: tuple[int, int]) -> None:
    """What all products have in common; the mnemonic of their wgmma, (multicast, all) copies."""
    multicast = len(re.findall(r"UTMALDG\.3D\.MULTICAST", text))
    assert (multicast, len(re.findall(r"UTMALDG\.3D\b", text))) == copies, name
    assert len(re.findall(r"USETMAXREG", text)) == 2, name
    # the loop over K has no fence: an arrival elsewhere in the cluster could bring one
    loop = text[text.index(product) : text.rindex(product)]
    assert not re.search(r"MEMBAR|CCTL", loop), name
