"""Heads: one file a method, on the protocol of `infodisent.methods.base`, and the list of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from infodisent.methods.base import Head
from infodisent.methods.bcos import BcosHead
from infodisent.methods.epic import EPICHead
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.methods.pipnet import PIPNetHead
from infodisent.methods.protopnet import ProtoPNetHead
from infodisent.methods.protopool import ProtoPoolHead
from infodisent.methods.protopshare import ProtoPShareHead
from infodisent.methods.protoquant import ProtoQuantHead
from infodisent.methods.prototree import ProtoTreeHead
from infodisent.methods.side import SideLikeHead
from infodisent.methods.st_protopnet import STProtoPNetHead
from infodisent.methods.stages import Stage
from infodisent.methods.tesnet import TesNetHead
from infodisent.methods.tree import TreeHead

METHODS: dict[str, type[Head]] = {
    head.method: head
    for head in (
        InfoDisentHead,  # rotate, keep the extreme pixels, classify with nonnegative weights
        ProtoPNetHead,  # compare with prototypes of every class, keep the best pixels, add up
        TesNetHead,  # project onto the subspace of every class, keep the largest
        STProtoPNetHead,  # prototypes far from other classes', and prototypes close to them
        ProtoQuantHead,  # assign pixels to the codes of a k-means codebook, weights >= 0
        ProtoPShareHead,  # the same, prototypes that see alike merged
        ProtoPoolHead,  # a pool of prototypes from which classes choose
        BcosHead,  # B-cos layers on every pixel, and the mean: linear maps that the input scales
        EPICHead,  # the linear classifier of the mean pixel, in channels rotated to be purer
        SideLikeHead,  # InfoDisent with sigmoids, pruned to a few channels a class
        ProtoTreeHead,  # ask for one prototype after the other, softly
        TreeHead,  # a decision tree on InfoDisent's channels
        PIPNetHead,  # softmax over prototypes that two views agree on; may abstain
    )
}
"""Every method by its name; a new one is one line above."""

DEFAULT = InfoDisentHead.method
"""The method where none is named, and that of files from before there was a choice."""

__all__ = ["DEFAULT", "METHODS", "Head", "Stage", "build_head", "check_options", "method_class"]


def method_class(name: str) -> type[Head]:
    """The head of a method.

    Raises:
        ValueError: there is no such method; the message names those there are.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method is {name!r}, allowed are {', '.join(METHODS)}")
    return METHODS[name]


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise TypeError unless every name is an option of the method called `name`."""
    allowed = method_class(name).option_names()
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(unknown)}; its options are {', '.join(allowed)}"
        )


def build_head(name: str, in_features: int, num_classes: int, **arguments: Any) -> Head:
    """A new head of the method called `name`, by its constructor's keyword arguments.

    Raises:
        TypeError: an argument is none of the method's.
        ValueError: there is no such method, or an argument's value is not allowed.
    """
    make: Any = method_class(name)
    head: Head = make(in_features, num_classes, **arguments)
    return head
