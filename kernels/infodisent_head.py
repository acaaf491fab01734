"""The whole head on the GPU: rotated sparse pool and class scores, in one launch or in two.

Two launches: `rotate_pool`, then a product whose tiles are small, or share their channels among
programs, as a batch has few of them. One launch, experimental: a queue of the same tiles,
first those of the pool and then those of the scores, which wait for the images they need; it is to
save the time between two kernels and to fill multiprocessors that the last wave of the pool leaves
idle. What is missing is a measurement on a GPU; tests and benchmarks alone reach it. Laying out the
operands, where they need it (see `infodisent.kernels.rotate_pool`), comes on top in both.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from infodisent.contract import empty_extremes

from . import device as gpu
from . import infodisent_head_kernels as kernels
from . import rotate_pool as pool
from .product import Parts, common_multiple
from .tiles.infodisent_head import SPLITS, choose
from .tiles.rotate_pool import Tiles

LAUNCHES = ("two", "one")


def infodisent_head(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    weight: Tensor,  # [K, C]
    bias: Tensor | None,  # [K]
    relu: bool,
    launches: str = "two",
    products: str | None = None,
    *,
    chosen: Tiles | None = None,
    scores_chosen: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward: ``logits = (pos - neg) relu(weight)^T + bias`` of the pool of ``u x``.

    Args:
        x: [B, P, C] float32, float16 or bfloat16, any strides.
        u: [C, C], any of these dtypes, any strides.
        weight: [K, C], any of these dtypes.
        bias: [K] or None.
        relu: whether negative weights count as zero.
        launches: "two", or "one", which is experimental.
        products: how ``u x`` is computed, see `infodisent.kernels.rotate_pool`.
        chosen: tiles of the pool; by default as in `rotate_pool`.
        scores_chosen: those of the class scores; by default the model's choice, see
            `infodisent.kernels.tiles.infodisent_head`.

    Returns:
        logits [B, K] in the dtype of `weight`, and pos, neg, pos_index, neg_index [B, C].

    Raises:
        ValueError: the kernels cannot serve this.
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
    scores, scoring = _scoring(
        weight, bias, logits, relu, products, scores_chosen, launches == "two"
    )
    score_tiles = scoring.tiles
    groups = triton.cdiv(batch, score_tiles.channels)
    items = groups * triton.cdiv(classes, score_tiles.columns)
    if launches == "two":
        outputs = pool.rotate_pool(x, u, products, chosen=chosen)
        with torch.cuda.device_of(x):
            kernels.head_kernel[(items * score_tiles.split,)](
                outputs.pos, outputs.neg, scores, _scratch(score_tiles, items, x.device),
                batch, channels, classes, scoring,
                num_warps=score_tiles.num_warps, num_stages=score_tiles.num_stages,
            )  # fmt: skip
        return (logits, *outputs)
    outputs = empty_extremes(batch, channels, torch.float32, x.device)
    with torch.cuda.device_of(x):
        vectors = pool.matrix_operand(u, x.dtype, products)
        tiles = chosen or pool.best_tiles(x, products)
        one = pool.launch(
            x, vectors, outputs, products, tiles, pool.is_exact(x, products),
            state=1 + groups,
        )  # fmt: skip
        kernels.head_in_one_kernel[(one.items + items,)](
            **one.arguments, scores=scores, state=one.state, items=one.items, CLASSES=classes,
            SCORING=scoring, **one.options,
        )  # fmt: skip
    return (logits, *outputs)


def _scoring(
    weight: Tensor,  # [K, C]
    bias: Tensor | None,  # [K]
    logits: Tensor,  # [B, K]
    relu: bool,
    products: str,
    chosen: Tiles | None,
    shared: bool,
) -> tuple[kernels.Scores, kernels.Scoring]:
    """What the scores are made from, and how. shared: several programs may share a tile."""
    (batch, classes), channels = logits.shape, weight.shape[1]
    row = weight.stride(0) if classes > 1 else channels
    precision = "ieee" if products == "ieee" else "tf32x3"
    machine = gpu.capability(logits.device), gpu.processors(logits.device)
    # in a queue with the pool: tiles of any number of warps, which are those of the pool
    options = (precision, *machine, SPLITS) if shared else ("ieee", *machine, (1,))
    tiles = chosen or choose(batch, classes, channels, *options)
    scoring = kernels.Scoring(
        tiles,
        relu,
        ragged=channels % tiles.block_k != 0,
        multiple=common_multiple(channels, row),
        precision=precision,
    )
    bias = None if bias is None else bias.contiguous()
    return kernels.Scores(weight, row, bias, logits), scoring


def _scratch(tiles: Tiles, number: int, device: torch.device) -> Parts:
    """Where the parts of so many tiles are left and counted, if several share one."""
    if tiles.split == 1:
        return Parts(None, None)
    size = number * tiles.split * tiles.channels * tiles.columns
    sums = torch.empty(size, dtype=torch.float32, device=device)
    return Parts(sums, torch.zeros(number, dtype=torch.int32, device=device))


__all__ = ["LAUNCHES", "infodisent_head"]
