"""Where the maps of a training step come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from infodisent.data.reader import block_order
from infodisent.data.store import FeatureStore

IN_ANY_ORDER = 1 << 34
"""Bytes of maps up to which images come in any order: 16 GiB, which the system's cache may hold.
Larger stores are read in stretches, see `infodisent.data.reader.block_order`."""
STRETCH = 1 << 22
"""Bytes of a block of maps that is read at once: 4 MiB."""
MIXED = 256
"""Blocks whose images are mixed with each other: 1 GiB of maps."""


def stored_batches(
    store: FeatureStore,
    batches: Sequence[Tensor],  # [n] int64 each
    device: torch.device,
    window: int = 0,
) -> Iterator[Tensor]:
    """Maps ``[n, P, C]`` of one batch after the other, in the store's dtype, on `device`.

    Of an epoch: where the store fits into a GPU it is brought there, elsewhere its files are read
    ahead by a thread, `window` as of `window_of`.
    """
    store.keep_on(device)
    return store.read(batches, device, window)


def window_of(store: FeatureStore, batch_size: int) -> int:
    """Steps whose images lie close together in an order that `shuffled` gave; 0: in any order.

    `batch_size`: of a step, over all processes.
    """
    blocks = in_blocks(store)
    return 0 if blocks is None else max(1, blocks[0] * blocks[1] // max(1, batch_size))


def in_blocks(store: FeatureStore) -> tuple[int, int] | None:
    """Images of a block, and blocks of a window, for `block_order`; None: images in any order."""
    if len(store) * store.image_bytes <= IN_ANY_ORDER:
        return None
    return stretch(store), MIXED


def stretch(store: FeatureStore) -> int:
    """Images of a block."""
    return max(1, STRETCH // store.image_bytes)


def shuffled(
    store: FeatureStore,
    positions: Tensor,  # [n] int64
) -> Tensor:
    """The positions in a random order that suits the store, from torch's global generator."""
    blocks = in_blocks(store)
    if blocks is None:
        return positions[torch.randperm(len(positions))]
    return block_order(positions, *blocks)
