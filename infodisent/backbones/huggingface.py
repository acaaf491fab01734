"""Image classifiers of Hugging Face `transformers`: the map, the head, the input, the labels.

Its classes have no common way to say how they pool. The usual ones are tried in turn, each proved
against the model's own logits, and a model that none of them explains is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infodisent.backbones.backbone import evaluating, noise
from infodisent.backbones.plan import HeadPlan

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# what a stored description must not hold: it would make a library fetch or run something
_UNSAFE = ("auto_map", "backbone", "attn_implementation", "quantization", "pretrained", "trust")


def is_classifier(model: nn.Module) -> bool:
    """A classifier of transformers, of whatever family."""
    theirs = any(c.__module__.startswith("transformers.") for c in type(model).__mro__)
    return theirs and "ForImageClassification" in type(model).__name__


def create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """The classifier of a hub name, folder or, with ``config`` in `kwargs`, of its description."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"attach: hf/{name} needs transformers: pip install 'infodisent[hf]'"
        ) from error
    auto = transformers.AutoModelForImageClassification
    if "config" in kwargs:
        if pretrained:
            raise ValueError("attach: model_kwargs config excludes pretrained=True")
        options = dict(kwargs["config"])
        unsafe = [k for k in options if any(word in k for word in _UNSAFE)]
        unsafe += ["timm_wrapper"] if options.get("model_type") == "timm_wrapper" else []
        if unsafe:
            raise ValueError(f"attach: the config of hf/{name} may not hold {', '.join(unsafe)}")
        config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
        return auto.from_config(config)
    if pretrained:
        return auto.from_pretrained(name, use_safetensors=True, **kwargs)
    return auto.from_config(transformers.AutoConfig.from_pretrained(name, **kwargs))


def origin(model: Any) -> dict[str, Any] | None:
    """What builds the architecture again without reading anything; None if that can't be said."""
    config = model.config
    kind = type(model).__name__
    if config.model_type == "timm_wrapper":  # its model is built by timm, which may fetch
        return None
    # keys of that kind without a value say nothing; with one they make it more than a description
    options = {k: v for k, v in config.to_dict().items() if v is not None}
    unsafe = {k for k in options if any(word in k for word in _UNSAFE)}
    if any(options[k] for k in unsafe):
        return None
    dropped = unsafe | {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
    options = {k: v for k, v in options.items() if k not in dropped} | {"architectures": [kind]}
    outputs = getattr(getattr(model, "classifier", None), "out_features", None)
    if outputs not in (None, config.num_labels):  # the layer was replaced, the config was not
        options = {k: v for k, v in options.items() if k not in ("id2label", "label2id")}
        options["num_labels"] = outputs
    return {"source": "hf", "name": config.model_type, "model_kwargs": {"config": options}}


def class_names(model: Any) -> tuple[str, ...] | None:
    """``id2label`` where it holds names, not the placeholders LABEL_0, LABEL_1, …"""
    labels = getattr(model.config, "id2label", None) or {}
    names = [str(labels.get(i, f"LABEL_{i}")) for i in range(len(labels))]
    return None if all(n == f"LABEL_{i}" for i, n in enumerate(names)) else tuple(names)


def input_size(model: Any) -> tuple[int, int, int]:
    """Channels, height and width the model was built for."""
    size = getattr(model.config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(model.config, "num_channels", 3)), int(height), int(width)


def pretrained_cfg(model: Any, *, pretrained: bool) -> tuple[dict[str, Any], str]:
    """timm's keys, from the model's image processor, and "".

    Without one, from the defaults of its family's, and what is thereby assumed, in words.
    """
    import transformers

    processor: Any = None
    path = getattr(model.config, "_name_or_path", "")
    if path:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                path, local_files_only=not pretrained
            )
        except Exception:  # not there, or not readable: the family's own is the next best
            processor = None
    own = processor is not None
    if not own:
        mapping = transformers.IMAGE_PROCESSOR_MAPPING
        known = type(model.config) in mapping
        entry: Any = mapping[type(model.config)] if known else {}
        kinds = list(entry.values()) if isinstance(entry, dict) else list(entry)
        processor = next((kind for kind in kinds if kind is not None), None)
    channels, height, width = input_size(model)
    mean = getattr(processor, "image_mean", None) or [0.5] * channels
    std = getattr(processor, "image_std", None) or [0.5] * channels
    cfg = {
        "architecture": model.config.model_type,
        "mean": tuple(mean[:channels]),
        "std": tuple(std[:channels]),
        "interpolation": _RESAMPLING.get(getattr(processor, "resample", None) or 2, "bilinear"),
    }
    said = "" if own else f"those of {model.config.model_type}'s image processor are used"
    return cfg | _crop(processor, own, channels, (height, width)), said


def _crop(processor: Any, own: bool, channels: int, built_for: tuple[int, int]) -> dict[str, Any]:
    """Input size and crop: `size` is what the image is resized to, `crop_size` what is cut out."""
    size = _sides(getattr(processor, "size", None))
    crop = getattr(processor, "crop_size", None)
    cuts = bool(getattr(processor, "do_center_crop", False)) and crop is not None
    height, width = built_for
    if own and cuts:
        height, width = _sides(crop)[0] or built_for
    elif own and size[0] is not None:
        height, width = size[0]
    cfg: dict[str, Any] = {"input_size": (channels, height, width), "crop_pct": 1.0}
    if cuts and size[1]:
        cfg["crop_pct"] = (_sides(crop)[0] or (size[1],))[0] / size[1]
    elif size[0] is not None:
        cfg["crop_mode"] = "squash"  # both sides are set: the picture's own aspect is not kept
    elif getattr(processor, "crop_pct", None):  # ConvNeXt's: below 384 the shorter side is larger
        cfg["crop_pct"] = float(processor.crop_pct) if height < 384 else 1.0
        if own and size[1]:
            cfg["input_size"] = (channels, size[1], size[1])
    return cfg


def _sides(size: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width, or the shortest edge."""
    if isinstance(size, int):
        return (size, size), None
    height, width, edge = (
        size.get(key) if isinstance(size, dict) else getattr(size, key, None)
        for key in ("height", "width", "shortest_edge")
    )
    if height and width:
        return (int(height), int(width)), None
    return None, int(edge) if edge else None


def reading(model: Any) -> dict[str, Any]:
    """`Backbone`'s arguments that say how to read it; ValueError where no reading is right."""
    name = type(model).__name__
    channels, height, width = input_size(model)
    x = noise((2, channels, height, width), next(model.parameters()))
    with evaluating(model), torch.no_grad():
        try:
            raw = _features(model, x)
        except (AttributeError, KeyError, IndexError) as error:
            raise ValueError(f"{name} is not supported: no last_hidden_state: {error}") from error
        common = {"features": _features, "image_size": (height, width), "in_chans": channels}
        fmt, prefixes = (
            ("NCHW", [0]) if raw.ndim == 4 else ("NLC", _prefixes(model, raw, height, width))
        )
        want = model(x).logits
        want = want[0] if isinstance(want, tuple) else want
        for prefix in prefixes:
            for plan in _plans(model, fmt, prefix):
                try:
                    got = _logits(model, raw, plan)
                except (RuntimeError, AttributeError, TypeError):
                    continue
                if got.shape == want.shape and _close(got, want):
                    return {
                        **common,
                        "plan": plan,
                        "classifier": lambda m, r, p=plan: _logits(m, r, p),
                    }
            joined = _joined(model, raw, prefix)
            if joined is not None and joined.shape == want.shape and _close(joined, want):
                opaque = "it classifies the class token beside the mean of the pixels"
                plan = HeadPlan(fmt, prefix, "token+avg", tails=(("classifier",),), opaque=opaque)
                return {
                    **common,
                    "plan": plan,
                    "classifier": lambda m, r, p=prefix: _joined(m, r, p),
                }
    raise ValueError(
        f"{name} is not supported: no usual pool and classifier gives its logits; say how to read "
        "it: attach(model, K, features=lambda m, x: m.base_model(x).last_hidden_state, "
        "input_fmt=..., num_prefix_tokens=...)"
    )


def _features(model: Any, x: Tensor) -> Any:
    return model.base_model(x, return_dict=True).last_hidden_state


def _prefixes(model: Any, raw: Tensor, height: int, width: int) -> list[int]:
    """Prefix tokens that leave a grid; those that the embeddings hold come first."""
    tokens = raw.shape[1]
    names = {n.rpartition(".")[2]: p for n, p in model.named_parameters() if p.ndim >= 2}
    known = ("cls_token", "distillation_token", "register_tokens")
    promised = sum(names[n].shape[-2] for n in known if n in names)
    patch = getattr(model.config, "patch_size", None)
    sides = [patch] if isinstance(patch, int) else []
    grids = {(height // p) * (width // p) for p in sides} | {
        n * n for n in range(1, 1 + int(tokens**0.5))
    }
    others = [tokens - g for g in sorted(grids, reverse=True) if 0 <= tokens - g <= 8]
    return [p for p in [promised, *others] if tokens - p in grids][:1]


def _plans(model: Any, fmt: str, prefix: int) -> list[HeadPlan]:
    """The usual ways from a map to logits."""
    norms = [(), *((n,) for n, m in model.named_modules() if n.count(".") <= 2 and "norm" in n)]
    norms = [n for n in norms if not n or ("encoder" not in n[0] and "embed" not in n[0])]
    children = dict(model.named_children())
    heads: list[tuple[str, ...]] = [("classifier",)] if "classifier" in children else []
    if {"cls_classifier", "distillation_classifier"} <= children.keys():
        heads = [("cls_classifier", "distillation_classifier")]
    if {"classifier", "classifier_distill"} <= children.keys():
        heads = [("classifier", "classifier_distill")]
    plans = []
    for names in heads:
        tails = tuple((n,) for n in names)
        for norm in norms:
            plans.append(HeadPlan(fmt, prefix, "avg", after=norm, tails=tails))
            if norm:
                plans.append(HeadPlan(fmt, prefix, "avg", before=norm, tails=tails))
            if prefix >= len(names):
                plans.append(HeadPlan(fmt, prefix, "token", after=norm, tails=tails))
    return plans


def _logits(model: Any, raw: Tensor, plan: HeadPlan) -> Tensor:
    """The plan followed by hand, on the original's own modules."""

    def through(paths: tuple[str, ...], x: Tensor) -> Tensor:
        for path in paths:
            x = model.get_submodule(path)(x)
        return x

    x = through(plan.before, raw)
    if plan.input_fmt == "NCHW":
        pooled = [x.mean(dim=(2, 3))] * len(plan.tails)
    elif plan.pool == "token":
        pooled = [x[:, i] for i in range(len(plan.tails))]
    else:
        pooled = [x[:, plan.num_prefix_tokens :].mean(dim=1)] * len(plan.tails)
    logits = [
        through(tail, through(plan.after, v)) for tail, v in zip(plan.tails, pooled, strict=True)
    ]
    return torch.stack(logits).mean(dim=0)


def _joined(model: Any, raw: Tensor, prefix: int) -> Any:
    """DINOv2's: the class token and the mean of the pixels side by side."""
    if raw.ndim != 3 or prefix < 1 or not hasattr(model, "classifier"):
        return None
    classifier = model.classifier
    if getattr(classifier, "in_features", None) != 2 * raw.shape[-1]:
        return None
    return classifier(torch.cat([raw[:, 0], raw[:, prefix:].mean(dim=1)], dim=1))


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(b.dtype, 5e-2)
    return bool((a - b).abs().max() <= tolerance * (1e-6 + b.abs().max()))
