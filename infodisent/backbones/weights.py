"""A backbone's weights from a local file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from infodisent.backbones.backbone import Backbone, HasBackbone, backbone_of


def load_backbone(model: Backbone | HasBackbone, path: str | os.PathLike[str]) -> None:
    """Load a backbone's weights from a local file, without running any code from it.

    Args:
        model: a backbone, or a model that has one.
        path: ``.safetensors``, or a PyTorch file of plain tensors (read with ``weights_only``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or the weights do not fit the architecture.
    """
    backbone, source = backbone_of(model), Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file")
    try:
        if source.suffix == ".safetensors":
            state = load_file(source)
        else:
            state = torch.load(source, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        backbone.model.load_state_dict(state)
    except Exception as error:  # each reader fails in ways of its own; all mean "not usable"
        name = backbone.origin["name"] or type(backbone.model).__name__
        raise ValueError(f"{source} does not hold weights for {name}: {error}") from error
