"""Types of a launch's arguments as Triton's launcher finds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def aligned(value: Tensor) -> bool:
    """Whether it begins at 16 bytes, as all memory that is allocated does."""
    return value.storage_offset() * value.element_size() % 16 == 0


def like(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """Items in a tuple of the same type, named where that is."""
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def specialize(
    value: Any, special: bool
) -> tuple[Any, dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """(type, constants and attributes by path) of one argument, as Triton's launcher does."""
    divisible = [["tt.divisibility", 16]]
    if isinstance(value, tuple):
        parts = [specialize(v, special) for v in value]
        constants, attributes = (
            {(i, *path): v for i, part in enumerate(parts) for path, v in part[n].items()}
            for n in (1, 2)
        )
        return like(value, [part[0] for part in parts]), constants, attributes
    if value is None or (isinstance(value, int) and value == 1 and special):
        return "constexpr", {(): value}, {}
    if isinstance(value, int):
        kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        return kind, {}, {(): divisible} if special and value % 16 == 0 else {}
    if isinstance(value, float):
        return "fp32", {}, {}
    return POINTERS[value.dtype], {}, {(): divisible} if aligned(value) else {}
