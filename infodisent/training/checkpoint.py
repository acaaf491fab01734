"""A model in one safetensors file: weights, and the description that rebuilds it. No pickle."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.backbones import hub
from infodisent.backbones.backbone import Backbone
from infodisent.backbones.preprocess import (
    is_preprocessing,
    restore_transform,
    transform_config,
    transform_problem,
)
from infodisent.backbones.rebuild import FETCHING
from infodisent.backbones.weight_names import difference
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
        transform: keys that differ from the model's own evaluation transform.
        info: any JSON-able dictionary.
        task: "multiclass" or "multilabel".

    Raises:
        TypeError: the arguments are in another order, or `info` is not JSON-able.
        ValueError: the number of class names is not the number of classes, or an unknown task.
    """
    if isinstance(path, nn.Module) or not isinstance(model, InfoDisentClassifier):
        raise TypeError(
            f"save: path and model are a {type(path).__name__} and a {type(model).__name__}; write "
            "save(path, model), with a model from attach"
        )
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
    backbone = model.backbone
    spec = {
        **model.spec,
        "freeze": backbone.frozen,
        "num_classes": model.num_classes,
        "original_num_classes": backbone.num_classes,  # 0 once its classifier was left out
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
        "original": {"trained": backbone.trained, "class_names": backbone.class_names},
        "transform": {**transform_config(model), **(transform or {})},
        "info": info or {},
    }
    write_tensors(path, model.state_dict(), metadata)


Architecture = nn.Module | Backbone | InfoDisentClassifier
"""What `load` may be given: the original classifier, or what `attach` has made of it."""


def load(path: str | os.PathLike[str], *, module: Architecture | None = None) -> Checkpoint:
    """Read a checkpoint that `save` wrote and rebuild its model. Loads no pickle.

    Args:
        path: the ``.safetensors`` file.
        module: the original classifier's architecture, needed only where what builds it is not
            known (`attach` has warned of that, and the message says so). It is used, not copied.
            Where `attach` was told by callables how to read it, the model that `attach` makes of
            it in the same way.

    Raises:
        FileNotFoundError: no such file.
        TypeError: `path` is a model.
        ValueError: truncated, not a checkpoint of this package, made by a newer version, needs
            `module`, or the weights do not fit the architecture.
    """
    if isinstance(path, (nn.Module, Checkpoint)):
        raise TypeError(f"load: path is a {type(path).__name__}, must be a checkpoint's file")
    if module is not None and not isinstance(module, nn.Module):
        raise TypeError(f"load: module is a {type(module).__name__}, must be an nn.Module")
    tensors, metadata = read_tensors(path)
    if not isinstance(metadata, dict) or metadata.get("kind") != "model":
        raise ValueError(f"{path} was written by infodisent but is not a model checkpoint")
    with reading(path):
        return _rebuild(path, tensors, metadata, module)


def _rebuild(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    module: Architecture | None,
) -> Checkpoint:
    if metadata["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {metadata['format']}, this version reads up to {FORMAT}: update "
            "infodisent"
        )
    spec = {"method": DEFAULT, **metadata["spec"]}
    if len(metadata["classes"]) != spec["num_classes"]:
        raise ValueError(
            f"{path} names {len(metadata['classes'])} classes for {spec['num_classes']} outputs"
        )
    _check_description(path, spec, module)
    model = _attached(spec, module)
    problem = transform_problem(metadata["transform"], whole=False)
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    restore_transform(model.backbone, metadata["transform"])
    model.to(getattr(torch, metadata.get("dtype", "float32")))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        what = spec["name"] if module is None else type(module).__name__
        why = difference(model.state_dict(), tensors) or error
        raise ValueError(f"{path} does not fit {what}: {why}") from None
    backbone, original = model.backbone, metadata.get("original", {})
    model.spec = spec
    backbone.origin = {k: spec[k] for k in ("source", "name", "model_kwargs")}
    backbone.trained = original.get("trained", True)
    names = original.get("class_names")
    backbone.class_names = tuple(names) if names else None
    if spec.get("original_num_classes") == 0:
        backbone.num_classes = 0
    model.eval()
    return Checkpoint(
        model,
        tuple(metadata["classes"]),
        {**transform_config(model), **metadata["transform"]},  # some say only what differs
        metadata["info"],
        metadata.get("task", "multiclass"),
    )


def _check_description(
    path: str | os.PathLike[str], spec: dict[str, Any], module: Architecture | None
) -> None:
    """Only what describes a structure: a file must not make `load` fetch or open others."""
    give = (
        "pass the same architecture as load(path, module=...), open_run(folder, module=...) or "
        "--module file.py:function"
    )
    if module is None and spec["name"] is None:
        kind = spec.get("module", "a module")
        raise ValueError(f"{path} was made from {kind} and does not say what builds it: {give}")
    strange = set(spec["head_options"]) - set(method_class(spec["method"]).option_names())
    strange |= {
        k
        for k, value in spec["model_kwargs"].items()
        if k.startswith(FETCHING)
        and not (k == "pretrained_cfg_overlay" and is_preprocessing(value))
    }
    is_remote = module is None and (
        ":" in spec["name"] or (spec["source"] == "hf" and "config" not in spec["model_kwargs"])
    )
    if strange or is_remote:
        refused = ", ".join(sorted(strange)) or spec["name"]
        raise ValueError(
            f"{path} asks for {refused}, which may read other files or the network; {give}"
        )


def _attached(spec: dict[str, Any], module: Architecture | None) -> InfoDisentClassifier:
    options = {"freeze": spec["freeze"], "method": spec["method"], **spec["head_options"]}
    with hub.quiet(offline=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was attached first
        if isinstance(module, (Backbone, InfoDisentClassifier)):
            return attach(module, spec["num_classes"], **options)
        if module is not None:
            told = {k: v for k, v in spec.get("adapter", {}).items() if v is not None}
            options = {"source": spec["source"], **told, **options}
            return attach(module, spec["num_classes"], **options)
        kwargs = spec["model_kwargs"]
        if spec["source"] == "timm":
            kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
        options = {"source": spec["source"], "model_kwargs": kwargs, **options}
        return attach(spec["name"], spec["num_classes"], **options)
