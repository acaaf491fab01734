"""What a step with a backbone that trains would take."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from infodisent.backbones.backbone import Backbone
from infodisent.data.store import FeatureStore


def step_cost(
    backbone: Backbone, store: FeatureStore, batch_size: int, views: int, steps: int
) -> str:
    """A sentence: the memory of a training step, and on a CPU its time, from passes of one image.

    Args:
        backbone: that trains.
        store: says what images it takes.
        batch_size: images that one process passes at once; views: of every image; steps: of an
            epoch.
    """
    weight = next(backbone.parameters())
    size = tuple(store.meta["transform"]["input_size"])
    image = torch.zeros(1, *size, device=weight.device, dtype=weight.dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    kept: dict[int, int] = {p.data_ptr(): 0 for p in backbone.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.data_ptr(), tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = backbone(image)
    memory = sum(kept.values()) * batch_size * views / 1e9
    del held
    said = f"training the backbone: about {memory:.1f} GB a step of {batch_size} images"
    said += f" in {views} views" if views > 1 else ""
    if weight.device.type == "cpu":
        start = time.perf_counter()
        torch.autograd.grad(backbone(image).sum(), weight, allow_unused=True)
        minutes = (time.perf_counter() - start) * batch_size * views * steps / 60
        said += f", and on this CPU {minutes:.0f} minutes an epoch or less"
    return said + "; a smaller batch_size takes less memory"
