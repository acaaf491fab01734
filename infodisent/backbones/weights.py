"""A backbone's weights from a local file, as people have them."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent.backbones import weight_names as names
from infodisent.backbones.backbone import Backbone, HasBackbone, backbone_of
from infodisent.backbones.weight_files import read


@dataclass(frozen=True)
class WeightsReport:
    """What `load_backbone` took from a file.

    Attributes:
        path: the file.
        matched, total: tensors of the model that were in it, and all that the model has.
        left_out: names in the file that the model has no place for.
        notes: what else was done, a line each.
    """

    path: str
    matched: int
    total: int
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.matched} of {self.total} tensors of the backbone"]
        if self.left_out:
            lines.append(f"left out: {names.some(self.left_out)}")
        return "\n".join([*lines, *self.notes])


@dataclass
class _Trial:
    """One of the file's states under the model's names."""

    tensors: dict[str, Tensor]
    notes: list[str]
    given: Mapping[str, Tensor]


def load_backbone(model: Backbone | HasBackbone, path: str | os.PathLike[str]) -> WeightsReport:
    """Load a backbone's weights from a local file, without running any code from it.

    What training tools put round the weights is taken off: ``state_dict`` and its like beside an
    optimiser, averaged (EMA) weights, which are preferred, and prefixes such as ``module.``,
    ``_orig_mod.`` and ``model.``. timm's own filter of an architecture is applied (names of other
    code bases, position embeddings of another size). A classifier of another size is left out; the
    model then has no original logits. Of another implementation of the same layers the tensors are
    taken in order, if all of them fit one to one.

    Args:
        model: a backbone, or a model that has one.
        path: ``.safetensors``, a PyTorch file of tensors and plain values (read with
            ``weights_only``), or a checkpoint of this package, whose backbone is taken.

    Returns:
        What was matched and what was left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weights file, or not of this architecture; nothing has been loaded then.
    """
    backbone, source = backbone_of(model), Path(path)
    wanted = backbone.model.state_dict()
    classifier = _classifier(backbone, wanted)
    needed = {n: t for n, t in wanted.items() if n not in classifier and not names.is_derived(n)}
    trials = [_trial(backbone, wanted, called, given) for called, given in read(source)]
    best = max(
        trials, key=lambda trial: names.matched(needed, trial.tensors)
    )  # the first of equals
    tensors, notes = best.tensors, best.notes
    if names.matched(needed, tensors) < len(needed):
        ordered = names.in_order(wanted, best.given)
        if ordered is not None:
            tensors = ordered
            notes = ["other names for the same layers: all tensors match one to one in order"]
    _refuse(backbone, source, wanted, needed, classifier, tensors, best.given)
    found = {n: t for n, t in tensors.items() if n in wanted and names.fits(wanted[n], t)}
    bad = [n for n, t in found.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise ValueError(f"{source} holds NaN or Inf: {names.some(bad)}")
    lost = [n for n in wanted if n in classifier and n not in found and not names.is_derived(n)]
    if lost:
        sizes = [n for n in lost if n in tensors]
        why = "is not in the file"
        if sizes:
            theirs, ours = tuple(tensors[sizes[0]].shape), tuple(wanted[sizes[0]].shape)
            why = f"has another size ({sizes[0]} {theirs}, here {ours}) and was left out"
        notes.append(f"the original classifier {why}: no original logits")
    backbone.model.load_state_dict(found, strict=False)
    backbone.trained = True
    if lost:
        backbone.num_classes = 0
    total = sum(n in found or not names.is_derived(n) for n in wanted)
    left = tuple(n for n in tensors if n not in found and not names.is_derived(n))
    return WeightsReport(str(source), len(found), total, left, tuple(notes))


def _trial(
    backbone: Backbone, wanted: Mapping[str, Tensor], called: str, given: dict[str, Tensor]
) -> _Trial:
    tensors, prefix = names.renamed(wanted, given)
    notes = [f"taken from {called}"] if called else []
    if prefix:
        sign = "added to" if prefix.startswith("+") else "taken off"
        notes.append(f"prefix {prefix.lstrip('+')!r} {sign} the names")
    if names.matched(wanted, tensors) < len(wanted):
        filtered = _filtered(backbone.model, tensors)
        if filtered is None or names.matched(wanted, filtered) <= names.matched(wanted, tensors):
            filtered = _filtered(backbone.model, given)
        if filtered and names.matched(wanted, filtered) > names.matched(wanted, tensors):
            tensors = filtered
            notes.append("names and sizes adapted as timm does for this architecture")
    channels = _input_channels(backbone, wanted, tensors)
    if channels is not None:
        name, weight = channels
        was, is_now = tensors[name].shape[1], weight.shape[1]
        tensors = {**tensors, name: weight}
        notes.append(f"{name}: adapted from {was} to {is_now} image channels")
    return _Trial(tensors, notes, given)


def _filtered(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What timm's filter of the architecture makes of a state, or None."""
    module = sys.modules.get(type(model).__module__)
    function = getattr(module, "checkpoint_filter_fn", None)
    if function is None or not type(model).__module__.startswith("timm."):
        return None
    takes_model = len(inspect.signature(function).parameters) > 1
    try:
        result = function(dict(tensors), model) if takes_model else function(dict(tensors))
    except Exception:  # any: it was written for files of its own
        return None
    return {n: t for n, t in result.items() if isinstance(t, Tensor)}


def _input_channels(
    backbone: Backbone, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[str, Tensor] | None:
    """The first convolution for another number of image channels, as timm adapts it."""
    for name, ours in wanted.items():
        theirs = tensors.get(name)
        if theirs is None or ours.ndim != 4 or theirs.ndim != 4 or ours.shape == theirs.shape:
            continue
        same = ours.shape[0] == theirs.shape[0] and ours.shape[2:] == theirs.shape[2:]
        if same and ours.shape[1] == backbone.in_chans and theirs.shape[1] == 3:
            from timm.models import adapt_input_conv

            return name, adapt_input_conv(backbone.in_chans, theirs)
        return None
    return None


def _classifier(backbone: Backbone, wanted: Mapping[str, Tensor]) -> set[str]:
    """Names of tensors that only the original's logits depend on."""
    heads = [path for tail in backbone.plan.tails for path in tail]
    used = set(backbone.map_parameters())
    known = {n for n, p in backbone.model.named_parameters() if p.is_floating_point()}
    owners = {n.rpartition(".")[0] for n in known - used} - {n.rpartition(".")[0] for n in used}
    return {
        n
        for n in wanted
        if n in known - used
        or (n not in known and n.rpartition(".")[0] in owners)
        or any(n.startswith(f"{head}.") for head in heads if head)
    }


def _refuse(
    backbone: Backbone,
    source: Path,
    wanted: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    classifier: set[str],
    tensors: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
) -> None:
    """ValueError where a part of the backbone is not in the file, or the file is of a larger."""
    model = backbone.origin["name"] or type(backbone.model).__name__
    does_not = f"{source} does not hold weights for {model}"
    present = [n for n in needed if n in tensors]
    if len(present) * 2 < len(needed):
        raise ValueError(
            f"{does_not}: {len(present)} of {len(needed)} names match; the file has "
            f"{names.some(given)}; the model has {names.some(needed)}"
        )
    missing = [n for n in needed if n not in tensors]
    shapes = [n for n in present if not names.fits(needed[n], tensors[n])]
    if shapes:
        listed = "; ".join(
            f"{n} is {tuple(tensors[n].shape)} {str(tensors[n].dtype).removeprefix('torch.')}, "
            f"the model has {tuple(needed[n].shape)}"
            for n in shapes[:3]
        )
        raise ValueError(f"{does_not}: {len(shapes)} tensors have another shape or type: {listed}")
    if missing:
        raise ValueError(
            f"{does_not}: {len(missing)} of {len(needed)} tensors are missing: "
            f"{names.some(missing)}"
        )
    extra = [n for n in tensors if n not in wanted]
    larger = names.siblings(extra, needed)
    if larger:
        raise ValueError(f"{does_not}: it is of a larger model, with {names.some(larger)}")
