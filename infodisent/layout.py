"""Feature-map layouts: timm's format names, and the one view all operators compute on.

Every operator sees its input as ``[B, P, C]`` (images, pixels, channels), a view of whatever
memory the caller has. Prefix tokens are skipped by stride, never copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

INPUT_FMTS = ("NCHW", "NHWC", "NCL", "NLC")
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def value_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """What maps are computed and pooled in: float64 if an input is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_input_fmt(op: str, input_fmt: str, num_prefix_tokens: int) -> None:
    """Raise ValueError unless the layout arguments make sense together."""
    if input_fmt not in INPUT_FMTS:
        raise ValueError(f"{op}: input_fmt is {input_fmt!r}, allowed are {', '.join(INPUT_FMTS)}")
    if isinstance(num_prefix_tokens, bool) or not isinstance(num_prefix_tokens, int):
        raise TypeError(
            f"{op}: num_prefix_tokens must be an int, got {type(num_prefix_tokens).__name__}"
        )
    if num_prefix_tokens < 0:
        raise ValueError(f"{op}: num_prefix_tokens is {num_prefix_tokens}, must be >= 0")
    if num_prefix_tokens and input_fmt in ("NCHW", "NHWC"):
        raise ValueError(
            f"{op}: num_prefix_tokens is {num_prefix_tokens} but input_fmt is {input_fmt}; "
            "prefix tokens exist only in the token layouts NLC and NCL"
        )


def check_map(op: str, name: str, x: Tensor, input_fmt: str, num_prefix_tokens: int) -> None:
    """Raise unless `x` is a floating-point map of layout `input_fmt` with C >= 1 and P >= 1."""
    check_input_fmt(op, input_fmt, num_prefix_tokens)
    check_float(op, name, x)
    if x.ndim != len(input_fmt):
        raise ValueError(
            f"{op}: {name} is {tuple(x.shape)} but input_fmt {input_fmt} has {len(input_fmt)} "
            "dimensions"
        )
    channels, pixels = map_size(x, input_fmt, num_prefix_tokens)
    if channels == 0:
        raise ValueError(f"{op}: {name} is {tuple(x.shape)} [{input_fmt}]: no channels (C = 0)")
    if pixels <= 0:
        prefix = f" after {num_prefix_tokens} prefix tokens" if num_prefix_tokens else ""
        raise ValueError(f"{op}: {name} is {tuple(x.shape)} [{input_fmt}]: no pixels{prefix}")
    if isinstance(pixels, int) and pixels >= 2**31:  # a size that is only a symbol is not asked
        raise ValueError(
            f"{op}: {name} is {tuple(x.shape)} [{input_fmt}]: {pixels} pixels, must be below 2^31 "
            "(places are int32)"
        )


def check_float(op: str, name: str, x: Tensor) -> None:
    """Raise TypeError unless `x` is a dense tensor of a supported floating-point dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(x).__name__}")
    check_dense(op, name, x)
    if x.dtype not in FLOAT_DTYPES:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in FLOAT_DTYPES)
        raise TypeError(f"{op}: {name} is {x.dtype}, allowed are {allowed}")


def check_dense(op: str, name: str, x: Tensor) -> None:
    """Raise TypeError unless `x` has its numbers in memory, one for every place of its shape."""
    if x.layout != torch.strided or x.is_nested:
        given = "a nested tensor" if x.is_nested else f"of layout {x.layout}"
        raise TypeError(f"{op}: {name} is {given}, must be a dense tensor (torch.strided)")


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all given tensors live on one device."""
    first, *others = (t for t in tensors.values() if t is not None)
    if any(t.device != first.device for t in others):
        given = {name: t for name, t in tensors.items() if t is not None}
        where = ", ".join(f"{name} on {t.device}" for name, t in given.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {where}")


def map_size(x: Tensor, input_fmt: str, num_prefix_tokens: int = 0) -> tuple[int, int]:
    """``(C, P)`` of a map; P excludes the prefix tokens."""
    shape = x.shape
    if input_fmt == "NCHW":
        return shape[1], shape[2] * shape[3]
    if input_fmt == "NHWC":
        return shape[3], shape[1] * shape[2]
    if input_fmt == "NCL":
        return shape[1], shape[2] - num_prefix_tokens
    return shape[2], shape[1] - num_prefix_tokens


def to_bpc(x: Tensor, input_fmt: str, num_prefix_tokens: int = 0) -> Tensor:
    """The map as ``[B, P, C]``: a view wherever H and W can be merged without a copy."""
    if input_fmt == "NCHW":
        return x.flatten(2).transpose(1, 2)
    if input_fmt == "NHWC":
        return x.flatten(1, 2)
    if input_fmt == "NCL":
        return x.transpose(1, 2)[:, num_prefix_tokens:]
    return x[:, num_prefix_tokens:]


def from_bpc(g: Tensor, like: Tensor, input_fmt: str, num_prefix_tokens: int = 0) -> Tensor:
    """The adjoint of `to_bpc`: a ``[B, P, C]`` gradient in `like`'s shape, 0 at prefixes."""
    if input_fmt == "NCHW":
        return g.transpose(1, 2).reshape(like.shape)
    if input_fmt == "NHWC":
        return g.reshape(like.shape)
    if num_prefix_tokens:
        g = torch.nn.functional.pad(g, (0, 0, num_prefix_tokens, 0))
    return g.transpose(1, 2) if input_fmt == "NCL" else g


def row_strides(x: Tensor) -> tuple[int, int]:
    """Strides of image and pixel of a map [B, P, C], made up where there is only one of them."""
    batch, pixels, channels = x.shape
    pixel = x.stride(1) if pixels > 1 else channels
    return x.stride(0) if batch > 1 else pixels * pixel, pixel
