"""Models for the tests of attach: built by name, with weights that leave nothing out.

Weights are random, norms and running statistics too: with their initial ones and zeros a forgotten
norm would not show.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infodisent.backbones.torchvision_import import ensure_torchvision

ensure_torchvision()
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms, running statistics and whatever starts at zero get values that would be missed."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        kind = type(module).__name__.lower()
        if "norm" in kind or "affine" in kind:
            for name, p in module.named_parameters(recurse=False):
                noise = torch.rand(p.shape, generator=g)
                p.copy_(0.7 + 0.6 * noise if "weight" in name or "alpha" in name else noise - 0.5)
            if getattr(module, "running_var", None) is not None:
                module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=g) - 0.5)
                module.running_var.copy_(0.7 + torch.rand(module.running_var.shape, generator=g))
    for p in model.parameters():
        if not p.any():
            p.copy_(0.05 * torch.randn(p.shape, generator=g))
    return model.eval()


def build(name: str, classes: int = 11, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=classes, **kwargs))


def images(size: int, batch: int = 2, **kwargs: Any) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1), **kwargs)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    assert a.shape == b.shape
    scale = b.abs().max()
    assert torch.isfinite(scale)
    assert scale > 0, "nothing to compare"
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)
