"""How usual an image's units are, beside those of the training images.

A classifier answers whatever it is shown: a dog is a defective solar cell with some probability. Of
the training images the mean and the spread of every unit are known; an image whose units lie
further out than those of almost all training images is one the model has not learnt to judge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infodisent.backbones.backbone import evaluating
from infodisent.data.store import FeatureStore
from infodisent.methods import Head

MOST_IMAGES = 4000
"""Training images that are looked at, evenly taken."""
RARE = 0.01
"""Part of the training images that may lie as far out as an image that counts as unusual."""


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Units of training images, as a yardstick.

    Attributes:
        mean, spread: ``[M]`` float32, over the training images; spread is a standard deviation.
        distances: ``[n]`` float32, rising: `distance` of every training image looked at.
        energies: ``[n]`` float32, rising: log-sum-exp of their logits.
    """

    mean: Tensor
    spread: Tensor
    distances: Tensor
    energies: Tensor

    def distance(
        self,
        pooled: Tensor,  # [..., M]
    ) -> Tensor:
        """Root mean square, over the units that vary, of the distance to the mean in spreads."""
        alive = self.spread > 1e-6 * self.spread.amax().clamp_min(1e-12)
        z = (pooled[..., alive] - self.mean[alive]) / self.spread[alive]
        far: Tensor = z.square().mean(-1).sqrt()
        return far

    def rarity(self, value: float) -> float:
        """Part of the training images whose distance is at least `value`."""
        return float((self.distances >= value).float().mean())

    def energy_rarity(self, value: float) -> float:
        """Part of the training images whose energy is at most `value`."""
        return float((self.energies <= value).float().mean())


@torch.no_grad()
def training_familiarity(head: Head, store: FeatureStore) -> Familiarity | None:
    """The yardstick of a head's training images; None where there are fewer than 20.

    Args:
        head: trained, of as many channels as the store.
        store: of the run.
    """
    indices = store.indices("train")
    indices = indices[:: max(1, -(-len(indices) // MOST_IMAGES))]
    if len(indices) < 20:
        return None
    pooled, energies = [], []
    with evaluating(head):
        for maps, _, _ in store.batches(indices, 256, dtype=None):
            units = head.pool(maps.to(head.device), input_fmt="NLC").pooled
            energies.append(head.classify(units).float().logsumexp(1).cpu())
            pooled.append(units.float().cpu())
    values = torch.cat(pooled)
    yardstick = Familiarity(values.mean(0), values.std(0), torch.empty(0), torch.empty(0))
    distances = yardstick.distance(values).sort().values
    return Familiarity(
        yardstick.mean, yardstick.spread, distances, torch.cat(energies).sort().values
    )
