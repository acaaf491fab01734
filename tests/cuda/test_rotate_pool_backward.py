"""The CUDA kernel of dU without a GPU: what nvcc makes of it, and a model of it on the CPU."""

from __future__ import annotations

import re

import pytest
import torch

from infodisent.backends.cuda import module as _native_cuda
from infodisent.backends.cuda import rotate_pool_backward
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

KINDS = 6  # of pieces, in kPieces of grad_u_schedule.h


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model("rotate_pool_backward_model.cpp", tmp_path_factory.mktemp("model"))


@pytest.mark.slow  # it is compiled first
def test_model(model):
    """Operands, schedule, scales: rotate_pool_backward_model.cpp."""
    check_model(model)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Machine code of csrc/sm90/rotate_pool_backward.cu, and what ptxas printed."""
    return compile_source("rotate_pool_backward.cu", tmp_path_factory.mktemp("cuda"))


@pytest.mark.slow
def test_resources(compiled):
    check_resources(compiled[1], "grad_u_kernel", 2 * 2 * KINDS)  # dtypes, clusters or not


@pytest.mark.slow
def test_machine_code(compiled):
    """The instructions that the design is about are there, and no access to local memory is."""
    seen = 0
    for name, text in functions(compiled[0]).items():
        kernel = re.search(r"grad_u_kernelILi(\d)ELb[01]ELi([12])E", name)
        if kernel is None:
            continue
        seen += 1
        piece, cluster = int(kernel[1]), int(kernel[2])
        dtype = "" if "__half" in name else r"\.BF16"  # plain F32 is float16
        # A in registers (no descriptor before that of B), B transposed; two pieces by turns
        product = rf"HGMMA\.64x256x16\.F32{dtype} R\d+, R\d+, gdesc\[UR\d+\]\.tnspB"
        assert len(re.findall(product, text)) == len(re.findall("HGMMA", text)) == 2 * piece, name
        check_copies_and_loop(name, text, "HGMMA", (2, 2) if cluster == 2 else (0, 4))
        check_registers_in_flight(name, text, piece)
    assert seen == 4 * KINDS


def check_registers_in_flight(name: str, text: str, piece: int) -> None:
    """No operand of a product is written before the wait for it: the gradients of two pieces."""
    lines = [
        line
        for line in re.findall(r"/\*[0-9a-f]{4,}\*/\s+([^;]*);", text)
        if re.search(r"HGMMA|DEPBAR|\bR\d+", line)
    ]
    first = next(i for i, line in enumerate(lines) if "HGMMA" in line)
    last = next(i for i, line in enumerate(lines) if "DEPBAR.LE gsb0, 0x0" in line)
    groups: list[set[int]] = []  # committed and not waited for
    current: set[int] = set()
    sums: set[int] = set()
    products = waits = 0
    for line in lines[first:last] * 2:  # around the loop
        if "HGMMA" in line:
            to, start = map(int, re.search(r"HGMMA\S* R(\d+), R(\d+)", line).groups())
            sums = set(range(to, to + 128))
            current |= set(range(start, start + 4))
            products += 1
            if "gsb0" in line:
                groups.append(current)
                current = set()
        elif "DEPBAR.LE gsb0, 0x1" in line:
            groups = groups[-1:]
            waits += 1
        else:
            written = re.search(r"^\s*(?:@!?U?P\d+\s+)?(\S+)\s+(?:P\d+, )?R(\d+)\b", line)
            if written is None:
                continue
            wide = 2 if re.search(r"WIDE|\.64\b", written[1]) else 1
            target = set(range(int(written[2]), int(written[2]) + wide))
            assert not target & set.union(sums, current, *groups), (name, line)
    assert (products, waits) == (4 * piece, 4), name


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(2, 49, 64, dtype=BF16), None),
        (torch.zeros(2, 197, 64, dtype=torch.float16)[:, 1:], None),
        (torch.zeros(1, 1, 8, dtype=BF16), None),
        (torch.zeros(2, 49, 64), "must be bfloat16 or float16"),
        (torch.zeros(2, 49, 60, dtype=BF16), "multiple of 8"),
        (torch.zeros(2, 64, 49, dtype=BF16).mT, "must have 1"),
        (torch.zeros(2, 49, 68, dtype=BF16)[..., :64], "16 bytes"),
        (torch.zeros(1, 49, 64, dtype=BF16).expand(2, -1, -1), "positive"),
        (torch.zeros(1, 1, 8, dtype=BF16).expand(1, 2**26, 8), "2\\^26 pixels"),
    ],
)
def test_objection(x, reason):
    objection = rotate_pool_backward.map_objection(x)
    assert objection is None if reason is None else re.search(reason, objection)


def test_other_devices_are_refused():
    x = torch.zeros(2, 49, 64, dtype=BF16)
    winners = torch.zeros(2, 64), torch.zeros(2, 64)
    index = torch.zeros(2, 64, dtype=torch.int32)
    with pytest.raises(ValueError, match="grad_u: the CUDA module runs on cuda only"):
        rotate_pool_backward.grad_u(*winners, x, index, index, BF16)


needs_this = pytest.mark.skipif(
    not hasattr(_native_cuda._module, "grad_u"), reason="built before this kernel"
)


@needs_module
@needs_this
def test_choice():
    """Pairs of blocks where they cost nothing, and parts of the batch for small dU."""
    module = _native_cuda._module
    assert module.choose_grad_u(256, 49, 2048, 49, 132)[0] == 2
    assert module.choose_grad_u(1, 49, 768, 49, 132) == (2, 1)
    cluster, splits = module.choose_grad_u(256, 196, 768, 196, 132)
    assert cluster == 2
    assert 4 <= splits <= 8
    assert module.choose_grad_u(256, 49, 640, 0, 132)[0] == 1


@needs_module
@needs_this
@no_gpu
def test_errors_are_raised():
    """Without a GPU a launch fails, and bad arguments do before that."""
    module = _native_cuda._module
    sizes, pointers = (4, 49, 64, 49 * 64, 64), (16, 16, 16, 16, 16)
    with pytest.raises(RuntimeError, match="the device"):
        module.grad_u(16, 1, *sizes, *pointers, 0, 0, 0, 1, 1, True, 0)
    for dtype, parts, cluster, splits, message in [
        (0, 0, 1, 1, "bfloat16 and float16 only"),
        (3, 0, 1, 1, "bfloat16 and float16 only"),
        (1, 0, 3, 1, "clusters"),
        (1, 0, 1, 5, "splits"),
        (1, 0, 1, 2, "missing"),
        (2, 0, 1, 1, "missing"),
        (1, 4, 1, 2, "multiples of 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.grad_u(16, dtype, *sizes, *pointers, parts, 0, 0, cluster, splits, True, 0)
