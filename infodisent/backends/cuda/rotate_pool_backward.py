"""The gradient of u by the Hopper kernel (``csrc/sm90/rotate_pool_backward.cu``), for half maps."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.cuda import module
from infodisent.layout import row_strides


def map_objection(x: Tensor) -> str | None:
    """Why `grad_u` cannot read a map x [B, P, C], or None; for any device."""
    batch, pixels, channels = x.shape
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"x is {x.dtype}, must be bfloat16 or float16 for the gradient of u"
    if pixels >= 2**26 or batch >= 2**24:
        return f"x is {tuple(x.shape)}: 2^26 pixels or 2^24 images, or more"
    return module.map_objection(x, torch.empty(channels, channels, dtype=x.dtype, device="meta"))


def objection(x: Tensor) -> str | None:
    """Why `grad_u` cannot serve x [B, P, C], or None."""
    return module.device_objection(x.device) or map_objection(x)


def grad_u(
    grad_pos: Tensor,  # [B, C] gradient at the positive winners
    grad_neg: Tensor,  # [B, C] gradient at the negative winners
    x: Tensor,  # [B, P, C]
    pos_index: Tensor,  # [B, C], -1: no winner
    neg_index: Tensor,  # [B, C]
    dtype: torch.dtype,
    *,
    cluster: int | None = None,
    splits: int | None = None,
) -> Tensor:
    """Gradient of u: ``dU[c] = sum_b grad_pos[b, c] x[b, pos_index[b, c]]``, and likewise for neg.

    Gradients are rounded to the dtype of x (the Triton kernels' "half"), and added up in float32 in
    an order that depends on the sizes and `splits` alone: the same call gives the same bits. Pixels
    that are no winner of a channel do not reach it, whatever they hold. Launched on the current
    stream, without waiting; beside the result [splits, C, C] float32 are allocated.

    Args:
        grad_pos: see above; what stands where there is no winner is not read into the result.
        grad_neg: likewise.
        x: bfloat16 or float16, channels contiguous; see `objection`.
        pos_index: see above.
        neg_index: see above.
        dtype: of the result, that of x or float32.
        cluster: 2: pairs of blocks share what they read of x; 1: they do not.
        splits: parts of the batch that are summed apart, for work on every multiprocessor.

    Returns:
        [C, C] in `dtype`.

    Raises:
        ValueError: the kernel cannot serve this; the message is that of `objection`.
        RuntimeError: a launch failed.
    """
    reason = objection(x)
    if reason is None and dtype not in (x.dtype, torch.float32):
        reason = f"x is {x.dtype}, the gradient must be that or float32 but is {dtype}"
    if reason is not None:
        raise ValueError(f"grad_u: {reason}")
    batch, pixels, channels = x.shape
    out = torch.empty(channels, channels, dtype=dtype, device=x.device)
    if batch == 0:
        return out.zero_()
    grads = [t.to(torch.float32).contiguous() for t in (grad_pos, grad_neg)]
    indices = [t.to(torch.int32).contiguous() for t in (pos_index, neg_index)]
    problem = batch, pixels, channels, module._pitch(x), module._processors(x.device)
    pairs, parts_of_batch = module._module.choose_grad_u(*problem)
    cluster = pairs if cluster is None else cluster
    splits = parts_of_batch if splits is None else splits
    parts: Tensor | None = None
    scales: Tensor | None = None
    if splits > 1:
        parts = torch.empty(splits, channels, channels, dtype=torch.float32, device=x.device)
    if x.dtype == torch.float16:
        scales = torch.empty(channels, dtype=torch.float32, device=x.device)
    index, stream = module._where(x.device)
    module._module.grad_u(
        x.data_ptr(),
        module.CODES[x.dtype],
        batch,
        pixels,
        channels,
        *row_strides(x),
        *(t.data_ptr() for t in (*grads, *indices)),
        out.data_ptr(),
        0 if parts is None else parts.data_ptr(),
        0 if scales is None else scales.data_ptr(),
        index,
        cluster,
        splits,
        dtype != torch.float32,
        stream,
    )
    return out
