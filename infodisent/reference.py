"""The formulas in plain PyTorch, to be read and to be compared with.

Same names and signatures as `infodisent.ops`, no custom gradient and no custom operator: autograd
differentiates these lines, ``torch.onnx.export`` exports them, float64 runs through them. Source of
the model: Struski, Rymarczyk, Tabor, "InfoDisent: Explainability of Image Classification Models by
Information Disentanglement", arXiv 2409.10329.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from infodisent.contract import Pool, SparsePool
from infodisent.layout import to_bpc, value_dtype


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


def similarity_pool(
    x: Tensor,
    prototypes: Tensor,
    *,
    similarity: str = "dot",
    second: str | None = None,
    mean: bool = False,
    valid: Tensor | None = None,
    input_fmt: str = "NCHW",
    num_prefix_tokens: int = 0,
) -> Pool:
    """The best pixel for every prototype: x any layout, `prototypes` ``[M, C]``.

    "dot" is the largest ``x_p·v_m``, "cosine" the largest ``x_p·v_m / (‖x_p‖ ‖v_m‖)`` (0 where a
    norm is 0), "l2" the smallest ``‖x_p - v_m‖²``; `second` another of them. `mean` is the mean of
    the first over the pixels. Only pixels of `valid`, ``[B, P]`` bool, count.
    """
    dtype = value_dtype(x.dtype, prototypes.dtype)
    x, v = to_bpc(x, input_fmt, num_prefix_tokens).to(dtype), prototypes.to(dtype)
    x = _shown(x, valid)
    value, index = _best(x, v, similarity, valid)
    average = _mean(x, v, similarity, valid) if mean else None
    if second is None:
        return Pool(value, index, mean=average)
    return Pool(value, index, *_best(x, v, second, valid), average)


def _shown(x: Tensor, valid: Tensor | None) -> Tensor:
    """[B, P, C] without what pixels hold that do not count: a NaN times a gradient of 0 is NaN."""
    return x if valid is None else torch.where(valid[:, :, None], x, 0)


def _best(x: Tensor, v: Tensor, similarity: str, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    if similarity == "l2":
        # by differences: a pixel that equals a prototype is found
        # cdist is not in every exporter, and has no forward-mode rule
        if torch.onnx.is_in_onnx_export() or forward_ad._current_level >= 0:
            scores = -(x[:, :, None] - v).square().sum(dim=3)
        else:
            with torch.no_grad():
                scores = -torch.cdist(x, v, compute_mode="donot_use_mm_for_euclid_dist")
    elif similarity == "cosine":
        scores = unit(x) @ unit(v).t()
    else:
        scores = x @ v.t()
    if valid is not None:
        scores = scores.masked_fill(~valid[:, :, None], -torch.inf)
    value, index = scores.max(dim=1)  # [B, M]
    if similarity == "l2":
        winners = x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))  # [B, M, C]
        value = (winners - v).square().sum(dim=2)
    return value, index.to(torch.int32)


def _mean(x: Tensor, v: Tensor, similarity: str, valid: Tensor | None) -> Tensor:
    """Mean of a similarity over the pixels: that of the mean pixel, and for "l2" their spread."""
    if similarity == "cosine":
        x, v = unit(x), unit(v)
    if valid is None:
        valid = x.new_ones(x.shape[:2], dtype=torch.bool)
    share = valid.to(x.dtype) / valid.sum(dim=1, keepdim=True)
    center = (x * share[:, :, None]).sum(dim=1)  # [B, C]
    if similarity != "l2":
        return center @ v.t()
    spread = ((x - center[:, None]).square().sum(dim=2) * share).sum(dim=1)  # [B]
    return spread[:, None] + (center[:, None] - v).square().sum(dim=2)


def unit(x: Tensor) -> Tensor:
    """Rows divided by their norms; zero, and without a gradient, where the norm is zero."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm == 0, 0, x / torch.where(norm == 0, 1, norm))


def softmax_pool(
    x: Tensor,
    prototypes: Tensor | None = None,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    input_fmt: str = "NCHW",
    num_prefix_tokens: int = 0,
) -> Pool:
    """Softmax at every pixel, over channels or ``x_p·v_m / temperature + bias_m``; then the max.

    Without `prototypes` the scores are ``x / temperature`` and M = C.
    """
    dtype = value_dtype(x.dtype, *(t.dtype for t in (prototypes, bias) if t is not None))
    z = _shown(to_bpc(x, input_fmt, num_prefix_tokens).to(dtype), valid)
    if prototypes is not None:
        z = z @ prototypes.to(dtype).t()
    z = z / temperature
    if bias is not None:
        z = z + bias.to(dtype)
    probability = torch.softmax(z, dim=2)  # [B, P, M]
    if valid is not None:
        probability = probability.masked_fill(~valid[:, :, None], -torch.inf)
    value, index = probability.max(dim=1)
    return Pool(value, index.to(torch.int32))


def softmax_alignment(
    first: Tensor, second: Tensor, *, input_fmt: str = "NCHW", num_prefix_tokens: int = 0
) -> Tensor:
    """``-log Σ_m softmax(first)_m softmax(second)_m`` at every pixel of two maps, ``[B, P]``."""
    dtype = value_dtype(first.dtype, second.dtype)
    pair = (to_bpc(z, input_fmt, num_prefix_tokens).to(dtype) for z in (first, second))
    a, b = (torch.log_softmax(z, dim=2) for z in pair)
    return -torch.logsumexp(a + b, dim=2)
