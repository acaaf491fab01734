"""Checks of what the metrics are given: an error names the argument, its value and what may be."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.checks import check_positive
from infodisent.methods import Head


def check_tensor(what: str, name: str, value: object, *shape: int | str) -> None:
    """Raise TypeError or ValueError unless it is a tensor of a shape.

    Args:
        what, name: of the function and its argument, for messages.
        value: what was given.
        shape: a length each, or what a dimension is called, of any length.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{what}: {name} is a {type(value).__name__}, must be a tensor")
    fits = len(shape) == value.ndim and all(
        isinstance(wanted, str) or wanted == length
        for wanted, length in zip(shape, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{what}: {name} is {tuple(value.shape)}, must be ({wanted})")


def check_numbers(what: str, name: str, value: object, *shape: int | str) -> None:
    """`check_tensor` of floating-point numbers of which none is NaN or Inf."""
    check_tensor(what, name, value, *shape)
    assert isinstance(value, Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{what}: {name} is {value.dtype}, must be floating-point")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{what}: {name} holds NaN or Inf, must be finite")


def check_labels(what: str, name: str, value: object, count: int, classes: int) -> None:
    """Raise TypeError or ValueError unless it is a class of `classes` for each of `count`."""
    check_tensor(what, name, value, count)
    assert isinstance(value, Tensor)
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{what}: {name} is {value.dtype}, must be int64, a class an image")
    if count and not 0 <= int(value.min()) <= int(value.max()) < classes:
        raise ValueError(
            f"{what}: {name} are {int(value.min())} … {int(value.max())}, allowed are 0 … "
            f"{classes - 1}"
        )


def check_images(what: str, images: Tensor, labels: object = None, classes: int = 0) -> None:
    """Raise TypeError or ValueError unless images are as the backbone is fed.

    Args:
        what: function whose argument they are.
        images: ``[B, 3, H, W]``, normalised.
        labels: None, or one of `classes` classes for every image.
    """
    check_numbers(what, "images", images, "images", 3, "rows", "columns")
    if labels is not None:
        check_labels(what, "labels", labels, len(images), classes)


def check_parts(what: str, images: Tensor, keypoints: Tensor, visible: Tensor) -> None:
    """Raise TypeError or ValueError unless every image has places of parts, and which are seen.

    A part that is not visible may lie at NaN.
    """
    check_tensor(what, "keypoints", keypoints, len(images), "parts", 2)
    check_tensor(what, "visible", visible, len(images), keypoints.shape[1])
    if visible.dtype != torch.bool:
        raise TypeError(f"{what}: visible is {visible.dtype}, must be bool")
    if not bool(keypoints[visible].isfinite().all()):
        raise ValueError(f"{what}: keypoints of visible parts hold NaN or Inf, must be finite")


def check_maps(what: str, head: Head, maps: Tensor) -> None:
    """Raise TypeError or ValueError unless they are what the head is fed, ``[B, P, C]``."""
    check_numbers(what, "maps", maps, "images", "pixels", head.in_features)


def check_pooled(what: str, head: Head, pooled: Tensor) -> None:
    """Raise TypeError or ValueError unless they are the head's units, ``[n, M]``."""
    check_numbers(what, "pooled", pooled, "images", head.num_features)


def check_counts(what: str, **counts: int) -> None:
    """`infodisent.checks.check_positive` of several."""
    for name, value in counts.items():
        check_positive(what, name, value)


def check_label_rows(what: str, name: str, value: object, count: int, classes: int) -> None:
    """Raise TypeError or ValueError unless it is a zero or one for every label of each image."""
    check_tensor(what, name, value, count, classes)
    assert isinstance(value, Tensor)
    if not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(f"{what}: {name} hold other numbers than 0 and 1, which are all allowed")


def check_found_parts(what: str, name: str, vectors: object, labels: Tensor, units: Tensor) -> None:
    """Raise TypeError or ValueError unless they are what `part_vectors` finds of images and units.

    Args:
        name: of `vectors`, ``[B, own, J]`` bool.
        labels: ``[B]``, classes.
        units: ``[K, own]`` int64, -1 for none.
    """
    check_tensor(what, "units", units, "classes", "units of a class")
    check_tensor(what, name, vectors, "images", units.shape[1], "parts")
    assert isinstance(vectors, Tensor)
    if vectors.dtype != torch.bool or units.is_floating_point():
        raise TypeError(
            f"{what}: {name} is {vectors.dtype} and units {units.dtype}, must be bool and int64"
        )
    check_labels(what, "labels", labels, len(vectors), len(units))
