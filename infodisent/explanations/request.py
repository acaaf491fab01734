"""What `explain` is asked for, checked before an image is read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from infodisent.backbones.preprocess import transform_config
from infodisent.checks import check_choice
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.images import TASKS
from infodisent.data.intensity import check_range
from infodisent.data.pictures import check_page, reading_options
from infodisent.methods import Head

_LISTED = 20
"""Class names in a message, at most."""


class Loaded(Protocol):
    """A model with what it was trained with, such as `infodisent.load` returns."""

    @property
    def model(self) -> InfoDisentClassifier:
        """The classifier."""

    @property
    def classes(self) -> Sequence[str]:
        """K class names."""

    @property
    def transform(self) -> dict[str, Any]:
        """Configuration of its evaluation transform."""

    @property
    def task(self) -> str:
        """ "multiclass" or "multilabel"."""


@dataclass(frozen=True)
class Request:
    """What is asked of every image, checked.

    Attributes:
        model, names, class_index, top, top_opposing, task: as `explain` has them, with defaults.
        config: of the evaluation transform.
        options: of `load_picture`.
        ready: images are tensors as the backbone is fed.
    """

    model: InfoDisentClassifier
    names: tuple[str, ...]
    class_index: int | None
    top: int
    top_opposing: int
    task: str
    config: dict[str, Any]
    options: dict[str, Any]
    ready: bool = False


def make_request(
    given: InfoDisentClassifier | Loaded,
    classes: Sequence[str] | None,
    class_index: int | None,
    top: int,
    top_opposing: int,
    transform: dict[str, Any] | None,
    task: str | None,
    intensity_range: tuple[float, float] | None,
    page: int | None,
    *,
    class_name: str | None = None,
    ready: bool = False,
) -> Request:
    """Check the arguments of `explain`; errors as there. Takes a checkpoint and wrappers apart."""
    model, classes, transform, task = taken_apart(given, classes, transform, task)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"explain: model is a {type(given).__name__}, must be a model from infodisent.attach "
            "or what infodisent.load returns"
        )
    classifier: Any = model  # or any model with a backbone and such a head
    task = task if task is not None else "multiclass"
    check_choice("explain", "task", task, TASKS)
    names = _check(classifier, classes, class_index, top, top_opposing)
    if class_name is not None:
        if class_index is not None:
            raise ValueError("explain: class_index and class_name are given; give one")
        class_index = class_named(names, class_name)
    if transform is not None and not isinstance(transform, Mapping):
        raise TypeError(
            f"explain: transform is a {type(transform).__name__}, must be a configuration such as "
            "infodisent.backbones.preprocess.transform_config gives; pass a tensor in [0, 1] where "
            "a transform of your own has resized the image"
        )
    config = {**transform_config(classifier), **(transform or {})}
    options = reading_options(config)
    if intensity_range is not None:
        options["intensity_range"] = check_range("explain", intensity_range)
    if page is not None:
        options["page"] = check_page("explain", page)
    return Request(classifier, names, class_index, top, top_opposing, task, config, options, ready)


def taken_apart(
    given: Any,
    classes: Sequence[str] | None,
    transform: dict[str, Any] | None,
    task: str | None,
) -> tuple[Any, Sequence[str] | None, dict[str, Any] | None, str | None]:
    """The classifier of what a user gives, and what of it is not given beside it."""
    model = given
    if not isinstance(given, nn.Module) and isinstance(getattr(given, "model", None), nn.Module):
        model = given.model
        classes = classes if classes is not None else given.classes
        transform = transform if transform is not None else given.transform
        task = task if task is not None else getattr(given, "task", None)
    return _unwrapped(model), classes, transform, task


def _unwrapped(model: Any) -> Any:
    """The classifier inside DDP, torch.compile or an average of weights."""
    while isinstance(model, nn.Module) and not hasattr(model, "head"):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def _check(
    model: InfoDisentClassifier,
    classes: Sequence[str] | None,
    class_index: int | None,
    top: int,
    top_opposing: int,
) -> tuple[str, ...]:
    head = getattr(model, "head", None)
    if not isinstance(head, Head) or not head.num_classes:
        raise ValueError("explain: the model has no interpretable head with classes")
    if isinstance(classes, str):
        raise TypeError(f"explain: classes is {classes!r}, must be a list of names")
    names = tuple(classes) if classes is not None else tuple(map(str, range(head.num_classes)))
    if len(names) != head.num_classes:
        raise ValueError(
            f"explain: {len(names)} class names were given for {head.num_classes} classes"
        )
    for name, value in (("class_index", class_index), ("top", top), ("top_opposing", top_opposing)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"explain: {name} is {value!r}, must be an int")
    if class_index is not None and not 0 <= class_index < head.num_classes:
        raise ValueError(
            f"explain: class_index is {class_index}, allowed are 0 … {head.num_classes - 1}"
        )
    for name, count in (("top", top), ("top_opposing", top_opposing)):
        if count < 0:
            raise ValueError(f"explain: {name} is {count}, must be >= 0")
    return names


def class_named(names: Sequence[str], name: str) -> int:
    """Position of a class; ValueError with those that are spelt alike where there is none."""
    if name in names:
        return list(names).index(name)
    lower = {known.lower(): known for known in names}
    close = [lower[n] for n in difflib.get_close_matches(str(name).lower(), list(lower), 3, 0.6)]
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"explain: class is {name!r}, the model knows {listed(names)}{hint}")


def listed(names: Sequence[str]) -> str:
    """Names for a message, not more than a person reads."""
    rest = f" … ({len(names):,} in all)" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest
