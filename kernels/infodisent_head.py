"""The whole head on the GPU: rotated sparse pool and class scores, in one launch or in two.

Two launches: `rotate_pool`, then a product. One launch: a queue of the same tiles, first those of
the pool and then those of the scores, which wait for the images they need; it saves the time
between two kernels and fills multiprocessors that the last wave of the pool leaves idle. Laying out
the operands, where they need it (see `infodisent.kernels.rotate_pool`), comes on top in both.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import _head_tiles as kernels
from . import rotate_pool as pool
from ._pool_configs import Tiles

LAUNCHES = ("two", "one")


def infodisent_head(
    x: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relu: bool,
    launches: str = "two",
    products: str | None = None,
    *,
    chosen: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward: ``logits = (pos - neg) relu(weight)^T + bias`` of the pool of ``u x``.

    Args:
        x: [B, P, C] float32, float16 or bfloat16, any strides.
        u: [C, C], any of these dtypes, any strides.
        weight: [K, C], any of these dtypes.
        bias: [K] or None.
        relu: whether negative weights count as zero.
        launches: "two" or "one".
        products: how ``u x`` is computed, see `infodisent.kernels.rotate_pool`.
        chosen: tiles of the pool; by default as in `rotate_pool`.

    Returns:
        logits [B, K] in the dtype of `weight`, and pos, neg, pos_index, neg_index [B, C].
    """
    if launches not in LAUNCHES:
        raise ValueError(f"infodisent_head: launches is {launches!r}, allowed are two, one")
    products = pool.check(x, u, products)
    batch, _, channels = x.shape
    classes = weight.shape[0]
    if weight.shape[1:] != (channels,) or (bias is not None and bias.shape != (classes,)):
        raise ValueError(
            f"infodisent_head: x is {tuple(x.shape)} [B, P, C] but weight is "
            f"{tuple(weight.shape)} and bias {None if bias is None else tuple(bias.shape)}"
        )
    logits = torch.empty(batch, classes, dtype=weight.dtype, device=x.device)
    if batch == 0 or classes == 0:
        return (logits, *pool.rotate_pool(x, u, products, chosen=chosen))
    if weight.stride(1) != 1 and channels > 1:
        weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    tiles = kernels.head_tiles(batch)
    groups = triton.cdiv(batch, tiles.images)
    items = groups * triton.cdiv(classes, tiles.classes)
    arguments = {
        "weight": weight, "bias": bias, "logits": logits, "B": batch, "C": channels,
        "CLASSES": classes, "w_row": weight.stride(0) if classes > 1 else channels, "RELU": relu,
        "HEAD_B": tiles.images, "HEAD_N": tiles.classes, "HEAD_K": tiles.block_k,
        "HEAD_MASK": channels % tiles.block_k != 0,
        "HEAD_PRECISION": "ieee" if products == "ieee" else "tf32x3",
    }  # fmt: skip
    if launches == "two":
        outputs = pool.rotate_pool(x, u, products, chosen=chosen)
        with torch.cuda.device_of(x):
            kernels.head_kernel[(items,)](
                pos=outputs[0], neg=outputs[1], **arguments,
                num_warps=tiles.num_warps, num_stages=tiles.num_stages,
            )  # fmt: skip
        return (logits, *outputs)
    outputs = pool.empty_outputs(x)
    with torch.cuda.device_of(x):
        matrix, u_strides, scale = pool.rotation_operand(u, x.dtype, products)
        found = chosen or pool.best_tiles(x, products)
        state = pool.counters(x.device, 2 + groups)
        one = pool.launch(
            x, matrix, u_strides, scale, outputs, products, found, pool.is_exact(x, products),
            first_counter=2 + groups,
        )  # fmt: skip
        kernels.head_in_one_kernel[(one.items + items,)](
            **{**one.arguments, **arguments}, state=state, items=one.items, **one.options
        )
    return (logits, *outputs)


__all__ = ["LAUNCHES", "infodisent_head"]
