"""What an installation builds, by `INFODISENT_BUILD` and by what the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pybind11", reason="the build needs pybind11: pip install pybind11")
ROOT = Path(__file__).parents[1]
ASK = """
import setuptools
setuptools.setup = lambda **options: None
import sys
source = open("setup.py").read()
exec(compile(source, "setup.py", "exec"))
find_nvcc = lambda: NVCC
has_gpu_driver = lambda: DRIVER
from pybind11.setup_helpers import Pybind11Extension
answer = cuda_extension(Pybind11Extension)
print(answer if isinstance(answer, str) else "built: " + answer.nvcc)
"""


def asked(mode: str, nvcc: str | None, driver: bool) -> subprocess.CompletedProcess[str]:
    code = ASK.replace("NVCC", repr(nvcc)).replace("DRIVER", repr(driver))
    environment = {**os.environ, "INFODISENT_BUILD": mode}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def nvcc(tmp_path) -> str:
    """A program that says nothing, as a compiler asked where it lies may."""
    path = tmp_path / "bin" / "nvcc"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the CUDA module is for Linux")
@pytest.mark.parametrize(
    ("mode", "driver", "built"),
    [("auto", True, True), ("auto", False, False), ("1", False, True), ("cuda", False, True)],
)
def test_auto_builds_for_a_gpu_where_there_is_a_driver(nvcc, mode, driver, built):
    answer = asked(mode, nvcc, driver)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("built: ") == built
    assert built or "no GPU driver" in answer.stdout


@pytest.mark.parametrize("mode", ["auto", "1"])
def test_no_nvcc_is_no_failure(mode):
    answer = asked(mode, None, True)
    assert answer.returncode == 0
    assert "no nvcc" in answer.stdout or "Linux only" in answer.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the CUDA module is for Linux")
def test_cuda_asked_for_without_nvcc_fails():
    answer = asked("cuda", None, True)
    assert answer.returncode == 1
    assert "no nvcc" in answer.stderr


def test_cpu_leaves_it_out(nvcc):
    assert asked("cpu", nvcc, True).stdout.strip() == "INFODISENT_BUILD=cpu"


def test_unknown_mode_is_refused():
    answer = asked("yes", None, False)
    assert answer.returncode == 1
    assert "'yes'" in answer.stderr
    assert "auto, 0, 1, cpu, cuda" in answer.stderr
