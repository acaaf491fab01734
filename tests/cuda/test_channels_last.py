"""Maps of contiguous pixels (NCHW): what is laid out by the kernel, and what nvcc makes of it.

That it computes: tests/cuda/test_emulator.py ("channels_last") and tests/simulator ("planes").
"""

from __future__ import annotations

import re

import pytest
import torch

from infodisent.backends.cuda import channels_last
from tests.cuda.common import compile_source, functions, resources

BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(2, 64, 7, 7, dtype=BF16).flatten(2).mT, None),
        (torch.zeros(2, 64, 7, 7).flatten(2).mT, None),
        (torch.zeros(2, 64, 50, dtype=BF16).mT[:, 1:], None),  # behind a class token
        (torch.zeros(2, 64, 50, dtype=BF16)[:, :56].mT, None),
        (torch.zeros(2, 64, 49, dtype=torch.float64).mT, "2 or 4 bytes"),
        (torch.zeros(2, 60, 49, dtype=BF16).mT, "multiple of 8"),
        (torch.zeros(2, 64, 98, dtype=BF16)[..., ::2].mT, "stride 2"),
    ],
)
def test_objection(x, reason):
    objection = channels_last.objection(x)
    assert objection is None if reason is None else reason in objection


def test_elsewhere_it_is_a_copy_of_the_framework():
    x = torch.randn(2, 64, 50).mT[:, 1:]
    rows = channels_last.channels_last(x)
    assert rows.is_contiguous()
    assert torch.equal(rows, x)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_source("channels_last.cu", tmp_path_factory.mktemp("cuda"))


def test_resources(compiled):
    """Nothing spills, and eight blocks of 256 threads share a multiprocessor."""
    every = resources(compiled[1])
    assert len(every) == 2
    for name, text in every.items():
        assert "0 bytes spill stores, 0 bytes spill loads" in text, name
        assert int(re.search(r"Used (\d+) registers", text)[1]) <= 65536 // (8 * 256), name
        assert int(re.search(r"(\d+) bytes smem", text)[1]) <= 227 * 1024 // 8 - 1024, name


def test_sixteen_bytes_a_thread(compiled):
    """Of global memory, in both directions: single elements only at the ends of a run."""
    for name, text in functions(compiled[0]).items():
        assert re.search(r"LDG\.E\.128", text), name
        stores = re.findall(r"STG\.E[.\w]*", text)
        assert stores, name
        assert all(".128" in store for store in stores), (name, stores)
