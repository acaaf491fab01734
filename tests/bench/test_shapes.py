"""Sizes of one's own in the comparisons."""

from __future__ import annotations

import json

import pytest

from infodisent.bench.cases import cases
from infodisent.bench.shapes import POOLS, SHAPES, shape_size
from tests.cli.test_cli import go

__all__ = ["go"]


def test_sizes():
    assert shape_size("resnet50") == ((2048, 7, 7), None)
    assert shape_size("16,768,196") == ((768, 14, 14), 16)
    assert shape_size("64,50") == ((64, 1, 50), None)
    assert shape_size("96x8x12") == shape_size("96×8×12") == ((96, 8, 12), None)


@pytest.mark.parametrize("shape", ["resnet99", "16,768", "1,2,3,4", "0,8,8", "8x8", "a,b,c", ""])
def test_what_is_no_size(shape):
    if shape == "16,768":
        assert shape_size(shape) == ((16, 1, 768), None)
        return
    with pytest.raises(ValueError, match="B,C,P such as") as caught:
        shape_size(shape)
    assert "resnet50" in str(caught.value)


def test_own_batches_are_cases_of_their_own():
    made = cases(["rotate_pool", "rotation"], ["4,8,9", "2,8,9", "8x3x3", "resnet34"], 4)
    sizes = {(c.op, c.shape, c.batch) for c in made}
    assert sizes == {
        ("rotate_pool", "4,8,9", 4),
        ("rotate_pool", "2,8,9", 2),
        ("rotate_pool", "resnet34", 4),
        ("rotation", "4,8,9", 4),
        ("rotation", "resnet34", 4),
    }
    assert len(cases()) == len(cases(shapes=(*SHAPES, *POOLS)))


def test_bench_of_own_sizes(tmp_path, go):
    code, text = go(
        "bench", "--op", "training_step", "--shape", "3,8,50", "--shape", "8x4x6", "--batch", 2,
        "--rounds", 1, "--json", tmp_path / "b.json",
    )  # fmt: skip
    assert code == 0, text
    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert {(r["batch"], *r["size"]) for r in results} == {(3, 8, 1, 50), (2, 8, 4, 6)}
