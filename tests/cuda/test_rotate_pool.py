"""The CUDA kernels without a GPU: what nvcc makes of them, and a model of them on the CPU."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from infodisent.backends.cuda import module as _native_cuda
from tests.cuda.common import (
    build_model,
    check_copies_and_loop,
    check_model,
    check_resources,
    compile_source,
    functions,
    needs_module,
    no_gpu,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model("rotate_pool_model.cpp", tmp_path_factory.mktemp("model"))


@pytest.mark.slow  # it is compiled first
def test_model(model):
    """Epilogue, schedule, operands, scales: rotate_pool_model.cpp."""
    check_model(model)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_source("rotate_pool.cu", tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def compiled_float8(tmp_path_factory):
    return compile_source("rotate_pool_float8.cu", tmp_path_factory.mktemp("cuda"))


@pytest.mark.slow
def test_resources(compiled):
    # bfloat16: every tile, rounded and whole; float16: every tile rounded, "flat" whole
    check_resources(compiled[1], "rotate_pool_kernel", 2 * INSTANCES + INSTANCES + 2)


@pytest.mark.slow
def test_resources_float8(compiled_float8):
    check_resources(compiled_float8[1], "rotate_pool_kernel", INSTANCES)


ROWS = (128,) * 7 + (64,) * 5
COLUMNS = (200, 152, 200, 200, 144, 192, 192, 56, 104, 32, 16, 56)
FLAT, PARTS = (6, 9), (10, 11)
INSTANCES = 2 * 10 + 2  # in pairs or not; the blocks that have parts of an image are no pairs
TILE = r"rotate_pool_kernelILi(\d+)ELb([01])ELi([12])E"


def copies_of(tile: re.Match) -> tuple[int, int]:
    """(multicast, all): a pair shares x, and the blocks that have parts of an image U."""
    return (1 if tile[3] == "2" or int(tile[1]) in PARTS else 0), 2


def columns_and_products(tile: re.Match) -> tuple[int, int]:
    """Columns of a product, and how many a slot takes: 4 steps along K for each 64 channels."""
    kind = int(tile[1])
    return COLUMNS[kind], 4 * ROWS[kind] // 64


@pytest.mark.slow
def test_machine_code(compiled):
    """The instructions that the design is about are there, and no access to local memory is."""
    seen = 0
    for name, text in functions(compiled[0]).items():
        tile = re.search(TILE, name)
        if tile is None:
            continue
        seen += 1
        dtype = "F16" if "__half" in name else "BF16"  # as in "F32.BF16"; plain F32 is float16
        columns, count = columns_and_products(tile)
        products = re.findall(rf"HGMMA\.64x{columns}x16\.F32(\.BF16)?", text)
        assert len(products) == count, name
        assert all(bool(kind) == (dtype == "BF16") for kind in products), name
        check_copies_and_loop(name, text, "HGMMA", copies_of(tile))
        check_packing(name, text, tile)
    assert seen == 3 * INSTANCES + 2


def check_packing(name: str, text: str, tile: re.Match) -> None:
    """A value of a whole image becomes its key by one instruction, not two, each of a constant."""
    kind = int(tile[1])
    if tile[2] == "0" and kind not in FLAT and ROWS[kind] == 128:
        values = COLUMNS[kind]  # of a thread: two products of half as many
        assert len(re.findall(r"\bLOP3\b", text)) <= 1.45 * values, name


@pytest.mark.slow
def test_machine_code_float8(compiled_float8):
    seen = 0
    for name, text in functions(compiled_float8[0]).items():
        tile = re.search(TILE, name)
        if tile is None:
            assert "largest_kernel" in name or "F2FP.SATFINITE.E4M3" in text, name
            continue
        seen += 1
        columns, count = columns_and_products(tile)
        products = re.findall(rf"QGMMA\.64x{columns}x32\.F32\.E4M3\.E4M3", text)
        assert len(products) == count, name
        assert "HGMMA" not in text, name
        check_copies_and_loop(name, text, "QGMMA", copies_of(tile))
        check_packing(name, text, tile)
    assert seen == INSTANCES


def test_a_missing_module_says_why(monkeypatch):
    monkeypatch.setattr(_native_cuda, "_module", None)
    monkeypatch.setattr(_native_cuda, "_missing", "no CUDA module: no nvcc")
    assert "no nvcc" in _native_cuda.describe()
    x = torch.zeros(1, 1, 8, dtype=torch.bfloat16)
    assert "cuda only" in _native_cuda.objection(x, torch.zeros(8, 8, dtype=torch.bfloat16))
    assert "no nvcc" in _native_cuda.device_objection(torch.device("cuda"))


@pytest.mark.parametrize(
    ("driver", "toolkit", "reason"),
    [
        (13000, 13000, None),
        (13020, 12080, None),
        (12020, 12080, None),  # older, of the same major version
        (12080, 13000, "serves CUDA 12.8, the CUDA module was compiled with 13.0"),
        (0, 12080, "no GPU driver"),
    ],
)
def test_driver(driver, toolkit, reason):
    objection = _native_cuda.driver_objection(driver, toolkit)
    assert objection is None if reason is None else reason in objection


def test_an_old_driver_is_noticed_before_a_launch(monkeypatch):
    """Wherever torch itself, of an older CUDA, runs."""
    module = SimpleNamespace(driver=lambda: 12040, toolkit=13000)
    monkeypatch.setattr(_native_cuda, "_module", module)
    monkeypatch.setattr(_native_cuda, "_missing", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _native_cuda._this_driver_objection.cache_clear()
    try:
        assert "CUDA 12.4" in _native_cuda.device_objection(torch.device("cuda"))
    finally:
        _native_cuda._this_driver_objection.cache_clear()


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("x", "u", "reason"),
    [
        (torch.zeros(2, 49, 64, dtype=BF16), torch.zeros(64, 64, dtype=BF16), None),
        (torch.zeros(2, 197, 64, dtype=BF16)[:, 1:], torch.zeros(64, 64, dtype=BF16), None),
        (torch.zeros(2, 49, 64), torch.zeros(64, 64), None),
        (torch.zeros(2, 49, 64), torch.zeros(64, 64, dtype=BF16), "but u is"),
        (torch.zeros(2, 49, 64).double(), torch.zeros(64, 64).double(), "must be float32"),
        (torch.zeros(2, 49, 60, dtype=BF16), torch.zeros(60, 60, dtype=BF16), "multiple of 8"),
        (torch.zeros(2, 64, 49, dtype=BF16).mT, torch.zeros(64, 64, dtype=BF16), "must have 1"),
        (
            torch.zeros(2, 49, 68, dtype=BF16)[..., :64],
            torch.zeros(64, 64, dtype=BF16),
            "16 bytes",
        ),
        (
            torch.zeros(2 * 49 * 64 + 1, dtype=BF16)[1:].view(2, 49, 64),
            torch.zeros(64, 64, dtype=BF16),
            "16 bytes",
        ),
        (
            torch.zeros(1, 49, 64, dtype=BF16).expand(2, -1, -1),
            torch.zeros(64, 64, dtype=BF16),
            "positive",
        ),
        (torch.zeros(2, 49, 64, dtype=BF16), torch.zeros(32, 32, dtype=BF16), "but u is"),
    ],
)
def test_objection(x, u, reason):
    objection = _native_cuda.map_objection(x, u)
    assert objection is None if reason is None else reason in objection


@needs_module
def test_pitch():
    module = _native_cuda._module
    assert module.pitch(256, 49, 49 * 64, 64) == 49
    assert module.pitch(256, 196, 197 * 64, 64) == 197  # a class token
    assert module.pitch(256, 49, 49 * 64 + 8, 64) == 0
    assert module.pitch(256, 49, 10 * 64, 64) == 0  # images that overlap
    assert module.pitch(1, 49, 7, 64) == 49


@needs_module
def test_variants():
    """What can serve a map, which GPU scripts run through; pairs where halves can be loaded."""
    cuda, half = _native_cuda, torch.float16
    x = torch.zeros(3, 50, 64, dtype=BF16)
    variants = {tile: cuda.clusters(x[:, 1:], tile) for tile in cuda.tiles(x[:, 1:])}
    assert variants == {
        **dict.fromkeys(("4x49", "3x49", "few 2x49", "part of 64", "part of 224"), (1,)),
        **dict.fromkeys(("flat", "few 1x49", "few flat"), (1, 2)),
    }
    assert cuda.clusters(torch.zeros(3, 49, 64, dtype=BF16), "4x49") == (1, 2)
    assert cuda.clusters(torch.zeros(3, 50, 64)[:, 1:], "4x49") == (1, 2)
    assert cuda.tiles(torch.zeros(1, 1025, 64, dtype=half)) == ["flat"]


@needs_module
@no_gpu
def test_errors_are_raised():
    """Without a GPU a launch fails, and bad arguments do before that."""
    module = _native_cuda._module
    with pytest.raises(RuntimeError, match="the device"):
        module.split(16, 1, 1, 8, 8, 8, 16, 16, 0, 0)
    with pytest.raises(ValueError, match="multiples of 16"):
        module.split(4, 1, 1, 8, 8, 8, 16, 16, 0, 0)
    sizes, pointers = (1, 49, 64, 49 * 64, 64), (16, 16, 16, 16, 16, 16, 0)
    with pytest.raises(RuntimeError, match="the device"):
        module.rotate_pool(16, 16, 1, *sizes, *pointers, 0, 0, 1, False, 0)
    for tile, cluster, exact, message in [
        (2, 1, False, "other maps"),
        (12, 1, False, "no such tile"),
        (0, 3, False, "clusters"),
        (6, 1, False, "missing"),
        (10, 2, False, "no kernel"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.rotate_pool(16, 16, 1, *sizes, *pointers, 0, tile, cluster, exact, 0)


@needs_module
@no_gpu
def test_errors_are_raised_float8():
    module = _native_cuda._module
    with pytest.raises(RuntimeError, match="the device"):
        module.to_float8(16, 1, 1, 1, 16, 16, 16, 16, 16, 16, 0, 0)
    with pytest.raises(ValueError, match="multiples of 16"):
        module.to_float8(16, 1, 1, 1, 8, 8, 8, 16, 16, 16, 0, 0)
    with pytest.raises(RuntimeError, match="the device"):
        module.rotate_pool_float8(16, 16, 1, 49, 64, 16, 16, *(16,) * 4, 0, 0, 0, 1, 0)
    for channels, pixels, scale, tile, message in [
        (24, 49, 16, 0, "multiples of 16"),
        (64, 1025, 16, 6, "whole values"),
        (64, 49, 0, 0, "missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.rotate_pool_float8(
                16, scale, 1, pixels, channels, 16, 16, *(16,) * 4, 16, 0, tile, 1, 0
            )
