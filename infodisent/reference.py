"""The formulas in plain PyTorch, to be read and to be compared with.

Same names and signatures as `infodisent.ops`, no custom gradient and no custom operator: autograd
differentiates these lines, ``torch.onnx.export`` exports them, float64 runs through them. Source of
the model: Struski, Rymarczyk, Tabor, "InfoDisent: Explainability of Image Classification Models by
Information Disentanglement", arXiv 2409.10329.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.contract import SparsePool
from infodisent.layout import to_bpc


def rotation(A: Tensor) -> Tensor:
    """``U = exp(A - A^T)``: orthogonal, determinant 1, the identity at ``A = 0``. ``[C, C]``."""
    return torch.matrix_exp(A - A.t())


def mx_pool(y: Tensor, *, input_fmt: str = "NCHW", num_prefix_tokens: int = 0) -> SparsePool:
    """``mx_pool(K) = max(ReLU(K)) - max(ReLU(-K))`` per channel, with the two locations."""
    y = to_bpc(y, input_fmt, num_prefix_tokens)  # [B, P, C]
    if y.dtype in (torch.float16, torch.bfloat16):
        y = y.float()
    pos, pos_index = torch.relu(y).max(dim=1)
    neg, neg_index = torch.relu(-y).max(dim=1)
    # `!= 0` and not `> 0`: a NaN is somewhere, and where it is should be shown.
    pos_index = torch.where(pos != 0, pos_index, -1).to(torch.int32)
    neg_index = torch.where(neg != 0, neg_index, -1).to(torch.int32)
    return SparsePool(pos - neg, pos, neg, pos_index, neg_index)


def rotate_pool(
    x: Tensor, U: Tensor, *, input_fmt: str = "NCHW", num_prefix_tokens: int = 0
) -> SparsePool:
    """Rotate every pixel, ``Y[b, :, p] = U X[b, :, p]``, and pool: x any layout, U ``[C, C]``."""
    dtype = torch.promote_types(x.dtype, U.dtype)
    x = to_bpc(x, input_fmt, num_prefix_tokens).to(dtype)  # [B, P, C]
    return mx_pool(x @ U.to(dtype).t(), input_fmt="NLC")


def infodisent_head(
    x: Tensor,
    U: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    nonneg: str = "relu",
    input_fmt: str = "NCHW",
    num_prefix_tokens: int = 0,
    return_pool: bool = False,
) -> Tensor | tuple[Tensor, SparsePool]:
    """``logits = pooled · W^T (+ b)``, ``[B, K]``; `weight` ``[K, C]``, used as ReLU(weight)."""
    pool = rotate_pool(x, U, input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens)
    w = torch.relu(weight) if nonneg == "relu" else weight
    dtype = torch.promote_types(pool.pooled.dtype, w.dtype)
    logits = pool.pooled.to(dtype) @ w.to(dtype).t()
    if bias is not None:
        logits = logits + bias.to(dtype)
    logits = logits.to(weight.dtype)
    return (logits, pool) if return_pool else logits
