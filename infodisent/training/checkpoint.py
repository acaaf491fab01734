"""A model in one safetensors file: weights, and the description that rebuilds it. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.backbones.preprocess import (
    is_preprocessing,
    restore_transform,
    transform_config,
)
from infodisent.checks import check_choice
from infodisent.classifier import InfoDisentClassifier, attach
from infodisent.data.images import TASKS
from infodisent.files import read_tensors, reading, write_tensors
from infodisent.methods import DEFAULT, method_class

FORMAT = 2
"""Format 1 is that of version 0.1, which has one method and reads no other."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: the rebuilt classifier, in evaluation mode.
        classes: class names, index = label.
        transform: configuration of the evaluation transform, see `infodisent.backbones.preprocess`.
        info: anything stored beside them (accuracies, training options …).
        task: "multiclass" (probabilities are a softmax) or "multilabel" (a sigmoid each).
    """

    model: InfoDisentClassifier
    classes: tuple[str, ...]
    transform: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)
    task: str = "multiclass"


def save(
    path: str | os.PathLike[str],
    model: InfoDisentClassifier,
    classes: Sequence[str] | None = None,
    *,
    transform: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    task: str = "multiclass",
) -> None:
    """Write the whole model, backbone included, so that nothing else is needed to rebuild it.

    Args:
        path: a ``.safetensors`` file; replaced at once or not at all.
        model: from `infodisent.attach`.
        classes: K class names; default: "0", "1", …
        transform: default: the model's own evaluation transform.
        info: any JSON-able dictionary.
        task: "multiclass" or "multilabel".

    Raises:
        ValueError: the number of class names is not the number of classes, or an unknown task.
    """
    check_choice("save", "task", task, TASKS)
    names = list(classes) if classes is not None else [str(i) for i in range(model.num_classes)]
    if len(names) != model.num_classes:
        raise ValueError(
            f"save: {len(names)} class names were given for {model.num_classes} classes"
        )
    try:
        json.dumps(info)
    except (TypeError, ValueError) as error:
        raise TypeError(f"save: info must be JSON-able: {error}") from error
    # the head may have been replaced since `attach`
    spec = {
        **model.spec,
        "num_classes": model.num_classes,
        "method": model.head.method,
        "head_options": model.head.options(),
    }
    dtype = next(model.head.parameters()).dtype
    metadata = {
        "kind": "model",
        "format": 1 if model.head.method == DEFAULT else FORMAT,
        "spec": spec,
        "dtype": str(dtype).removeprefix("torch."),
        "classes": names,
        "task": task,
        "transform": transform or transform_config(model),
        "info": info or {},
    }
    write_tensors(path, model.state_dict(), metadata)


def load(path: str | os.PathLike[str], *, module: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint that `save` wrote and rebuild its model. Loads no pickle.

    Args:
        path: the ``.safetensors`` file.
        module: the original classifier's architecture, needed only where the checkpoint was made
            from a module of unknown origin (the message says so). It is used, not copied.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a checkpoint of this package, made by a newer version, needs
            `module`, or the weights do not fit the architecture.
    """
    tensors, metadata = read_tensors(path)
    if not isinstance(metadata, dict) or metadata.get("kind") != "model":
        raise ValueError(f"{path} was written by infodisent but is not a model checkpoint")
    with reading(path):
        return _rebuild(path, tensors, metadata, module)


def _rebuild(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    module: nn.Module | None,
) -> Checkpoint:
    if metadata["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {metadata['format']}, this version reads up to {FORMAT}: update "
            "infodisent"
        )
    spec = {"method": DEFAULT, **metadata["spec"]}
    if module is None and spec["name"] is None:
        raise ValueError(
            f"{path} was made from a model instance whose architecture has no name: pass the same "
            "architecture as load(path, module=...)"
        )
    if len(metadata["classes"]) != spec["num_classes"]:
        raise ValueError(
            f"{path} names {len(metadata['classes'])} classes for {spec['num_classes']} outputs"
        )
    # Only what describes a structure: a file must not make this function fetch or open others.
    strange = set(spec["head_options"]) - set(method_class(spec["method"]).option_names())
    strange |= {
        k
        for k, value in spec["model_kwargs"].items()
        if k.startswith(("pretrained", "checkpoint", "cache"))
        and not (k == "pretrained_cfg_overlay" and is_preprocessing(value))
    }
    if strange or (module is None and ":" in spec["name"]):
        refused = ", ".join(sorted(strange)) or spec["name"]
        raise ValueError(
            f"{path} asks for {refused}, which may read other files or the network; pass the "
            "architecture as load(path, module=...)"
        )
    common = {k: spec[k] for k in ("freeze", "source", "method")} | spec["head_options"]
    if module is not None:
        model = attach(module, spec["num_classes"], **common)
    else:
        model = attach(
            spec["name"], spec["num_classes"], model_kwargs=spec["model_kwargs"], **common
        )
    restore_transform(model.backbone, metadata["transform"])
    model.to(getattr(torch, metadata.get("dtype", "float32")))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {spec['name'] or 'the module'}: {error}") from error
    model.spec = spec
    model.backbone.origin = {k: spec[k] for k in ("source", "name", "model_kwargs")}
    model.eval()
    return Checkpoint(
        model,
        tuple(metadata["classes"]),
        metadata["transform"],
        metadata["info"],
        metadata.get("task", "multiclass"),
    )
