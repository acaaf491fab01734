"""A model's name -> its library, and the model itself, with or without the published weights."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal

from infodisent.backbones import hub, huggingface

Source = Literal["timm", "torchvision", "hf"]


def resolve_name(name: str, source: Source | None) -> tuple[Source, str]:
    """Library and the library's own name; ValueError with close matches for unknown names."""
    import timm
    import torchvision

    for library in ("torchvision", "hf"):
        if name.startswith(f"{library}/"):
            if source not in (None, library):
                raise ValueError(f"attach: {name!r} names {library} but source is {source!r}")
            source, name = library, name.removeprefix(f"{library}/")  # type: ignore[assignment]
    if source == "hf":
        return "hf", name
    if source == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        if name in known:
            return "torchvision", name
        raise ValueError(f"attach: torchvision has no classifier {name!r}{_close(name, known)}")
    if ":" in name:  # hf-hub:..., local-dir:...: timm knows
        return "timm", name
    name = name.removeprefix("timm/")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        elsewhere = torchvision.models.list_models(module=torchvision.models)
        known = [*timm.list_models(), *(f"torchvision/{n}" for n in elsewhere)]
        hint = "; timm.list_models() lists the names, also torchvision/<name> is one"
        if "/" in base:
            hint = "; a name of the model hub is written hf/OWNER/NAME"
        raise ValueError(f"attach: timm has no model {base!r}{_close(base, known) or hint}")
    if tag and not timm.models.is_model_pretrained(name):
        known = timm.list_pretrained(f"{base}.*")
        raise ValueError(f"attach: timm has no weights {name!r}{_close(name, known)}")
    return "timm", name


def _close(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def create(source: Source, name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """Build the model; ValueError where its weights or its description cannot be had."""
    remote = pretrained or ":" in name or (source == "hf" and "config" not in kwargs)
    if not remote:
        return _create_from(source, name, pretrained, kwargs)
    local = name.startswith("local-dir:") or source == "torchvision"  # nothing to ask the hub for
    with hub.quiet(offline=None if not local else True) as offline:
        try:
            return _create_from(source, name, pretrained, kwargs)
        except (ModuleNotFoundError, TypeError):
            raise
        except Exception as error:
            # the hub's client has many kinds of failure; what helps is the same for all
            what = "published weights" if pretrained else "description"
            why = "the model hub does not answer and they are not in the local cache"
            if local or not offline:
                why = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            instead = (
                "give a file of them (--weights FILE; in Python "
                "infodisent.backbones.weights.load_backbone); pretrained=False (--no-pretrained) "
                "leaves the weights random, and features that mean little: for tests only"
            )
            if not pretrained:
                instead = "give a local folder (local-dir:PATH, hf/PATH) or a name timm knows"
            raise ValueError(
                f"attach: the {what} of {name!r} could not be loaded: {why}. Without a network, "
                f"{instead}"
            ) from (error if local or not offline else None)


def _create_from(source: Source, name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=pretrained, **kwargs)
    if source == "hf":
        return huggingface.create(name, pretrained, kwargs)
    import torchvision

    if name in ("googlenet", "inception_v3") and not pretrained:
        kwargs = {"init_weights": True, **kwargs}  # its default, said aloud to avoid its warning
    weights = "DEFAULT" if pretrained else None
    return torchvision.models.get_model(name, weights=weights, **kwargs)
