"""The CUDA kernels on a CPU: their own sources, barriers, copies and products in random order."""

from __future__ import annotations

import re

import pytest

from tests.cuda import emulation
from tests.cuda.common import CSRC


def test_the_stand_in_has_the_functions_of_ptx():
    """And no others, so that what kernels call is what the emulator knows."""
    texts = ((folder / "ptx.cuh").read_text() for folder in (CSRC / "sm90", emulation.FOLDER))
    real, ours = (set(re.findall(r"^(?:\w+ )+(\w+)\((?!.*;$)", text, re.M)) for text in texts)
    assert {"barrier_init", "load_box", "wgmma_wait", "elected"} < real
    assert real == ours


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return emulation.build(tmp_path_factory.mktemp("emulator"))


@pytest.mark.slow  # as all that builds the emulator: half a minute
def test_random_problems(emulator):
    """Every kernel and the host functions, against plain loops; also contexts and errors."""
    assert emulation.run(emulator, 150) == (0, "clean\n")


@pytest.mark.slow
def test_the_next_tile_begins_under_the_pool_of_this_one(emulator):
    """Blocks stay: copies of later tiles and products of the next one run beside a pool."""
    copies, products = emulation.beside_a_pool(emulator)
    assert copies > 50
    assert products > 50
    assert emulation.beside_a_pool(emulator, "serial")[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_many_random_problems(emulator, seed):
    assert emulation.run(emulator, 200, seed) == (0, "clean\n")


@pytest.mark.slow
@pytest.mark.parametrize("fault", emulation.FAULTS)
def test_planted_faults_are_found(emulator, fault):
    """A switch in the copy of a source; each must be found, and be what the report says."""
    code, report = emulation.run(emulator, 400, 1, fault)
    assert code == 1, fault
    assert emulation.FAULTS[fault][0] in report
