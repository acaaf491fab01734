"""best_pixels(maps, prototypes): over a whole data set, the pixels most alike to every prototype.

Projection ("push") is k = 1 with a class mask and `vectors`; galleries, pruning and purity are
k > 1. The data set is streamed: what is kept is ``[k, M]``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.checks import check_choice, check_positive, check_switches
from infodisent.layout import check_float, check_input_fmt, check_map, to_bpc
from infodisent.ops.similarity_pool import SIMILARITIES, similarity_pool

_LOW = (1 << 32) - 1
_NOTHING = -(1 << 63)
_SIGN = -(1 << 31)


@runtime_checkable
class MapStore(Protocol):
    """Maps on disk, such as `infodisent.data.store.FeatureStore`."""

    def __len__(self) -> int: ...

    def batches(
        self,
        indices: Tensor,  # [n] int64
        batch_size: int,
        *,
        dtype: torch.dtype | None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield maps ``[n, P, C]``, labels ``[n]`` or ``[n, K]``, and the images' numbers."""


class BestPixels(NamedTuple):
    """The k best images of every prototype, each with its best pixel, the best image first.

    Attributes:
        value: similarities, falling along dim 0 (of "l2": distances, rising), ``[k, M]`` float32;
            NaN where there is no image.
        image: numbers of the images, ``[k, M]`` int64, -1 where there is none. Equal values: the
            lower number first.
        index: flat pixels, as in `Pool`, ``[k, M]`` int32, -1 where there is none.
        vector: the pixels' own channels, ``[k, M, C]`` in the maps' dtype (the one that holds all
            of them, where batches differ), 0 where there is none; None where not asked for.
    """

    value: Tensor
    image: Tensor
    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index
    vector: Tensor | None = None


@torch.no_grad()
def best_pixels(
    maps: MapStore | Iterable[Any],
    prototypes: Tensor,
    *,
    k: int = 1,
    similarity: str = "dot",
    allowed: Tensor | None = None,
    vectors: bool = False,
    batch_size: int = 256,
    input_fmt: str = "NLC",
    num_prefix_tokens: int = 0,
    gather: bool = False,
    progress: bool = False,
) -> BestPixels:
    """The best pixel of each of the k best images, for every prototype, in one pass.

    Args:
        maps: a feature store, all of whose images are looked at; or an iterable of batches, each a
            map, or ``(map, labels)``, or ``(map, labels, numbers of the images)``. Labels, which
            `allowed` alone asks for, are integers ``[n]``, or ``[n, K]`` with more than 0.5 where
            an image has the class. Numbers are integers ``[n]``, 0 to 2^32 - 1, each given once
            (one given twice is two images); without them (None) images are counted from 0. Maps on
            another device than `prototypes` are moved to it.
        prototypes: ``[M, C]``, float32 / float16 / bfloat16 / float64.
        k: images kept for each prototype.
        similarity: see `similarity_pool`.
        allowed: ``[K, M]`` bool: an image of class c counts for prototype m where
            ``allowed[c, m]``; of several labels any one will do. All count if None.
        vectors: also keep the winning pixels' channels.
        batch_size: maps read from a store at a time.
        input_fmt, num_prefix_tokens: layout of the maps. The default, NLC, is that of a store, and
            not that of the pools.
        gather: of several processes (`infodisent.ranks`) each has given a part of the images, with
            their numbers: what all have seen is merged, exactly, and the same in all.
        progress: show a progress bar.

    Returns:
        BestPixels: `value`, `image`, `index`, each ``[k, M]``, and with `vectors` `vector`
        ``[k, M, C]``; NaN, -1, -1 and 0 where fewer than k images count.

    Values are compared, and returned, as float32 whatever the maps are. Without any image the
    result is empty places, and vectors are in the dtype of `prototypes`.

    Raises:
        TypeError: `maps`, a batch or a part of one, `prototypes` or `allowed` is of another type or
            dtype; `allowed` needs labels that the batches do not have.
        ValueError: see `similarity_pool`; k below 1; `allowed` of another size; labels or numbers
            that are not one for each image; a label that `allowed` has no row for; a number out of
            range; a NaN similarity.
    """
    for name, number in (("k", k), ("batch_size", batch_size)):
        check_positive("best_pixels", name, number)
    check_switches("best_pixels", vectors=vectors, gather=gather)
    check_choice("best_pixels", "similarity", similarity, SIMILARITIES)
    check_input_fmt("best_pixels", input_fmt, num_prefix_tokens)
    check_float("best_pixels", "prototypes", prototypes)
    if prototypes.ndim != 2 or not prototypes.numel():
        raise ValueError(
            f"best_pixels: prototypes is {tuple(prototypes.shape)}, must be (prototypes, "
            "channels), one of each at least"
        )
    if allowed is not None:
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
            raise TypeError("best_pixels: allowed must be a torch.bool tensor")
        if allowed.ndim != 2 or allowed.shape[1] != len(prototypes):
            raise ValueError(
                f"best_pixels: prototypes is {tuple(prototypes.shape)} but allowed is "
                f"{tuple(allowed.shape)}, must be (classes, {len(prototypes)})"
            )
        allowed = allowed.to(prototypes.device)
    total = len(maps) if isinstance(maps, MapStore) else None
    best = TopPixels(k, len(prototypes), largest=similarity != "l2")
    done = 0
    from infodisent.progress import bar  # rich is not for those who import operators alone

    with bar(progress) as display:
        task = display.add_task("compare", total=total, note="")
        for batch in _batches(maps, batch_size):
            x, labels, numbers = _parts(batch, done, input_fmt, num_prefix_tokens)
            x = x.to(prototypes.device)
            pool = similarity_pool(
                x,
                prototypes,
                similarity=similarity,
                input_fmt=input_fmt,
                num_prefix_tokens=num_prefix_tokens,
            )
            mask = None if allowed is None else _mask(allowed, labels, len(x))
            rows = to_bpc(x, input_fmt, num_prefix_tokens) if vectors else None
            best.update(pool.value, pool.index, numbers, allowed=mask, maps=rows)
            done += len(x)
            display.update(task, advance=len(x))
    if gather:
        best.gather()
    result = best.result()
    if vectors and result.vector is None:  # no image, so no map whose dtype it could have
        size = k, *prototypes.shape
        return result._replace(vector=torch.zeros(size, dtype=prototypes.dtype, device="cpu"))
    return result


def _batches(maps: MapStore | Iterable[Any], batch_size: int) -> Iterable[Any]:
    if isinstance(maps, MapStore):
        return maps.batches(torch.arange(len(maps)), batch_size, dtype=None)
    if isinstance(maps, Tensor) or not isinstance(maps, Iterable):
        raise TypeError(
            f"best_pixels: maps is a {type(maps).__name__}, must be a store or an iterable of "
            "batches, such as [map]"
        )
    return maps


def _parts(
    batch: Any, done: int, input_fmt: str, num_prefix_tokens: int
) -> tuple[Tensor, Any, Tensor]:
    """Map, labels if there are, and the images' numbers."""
    if not isinstance(batch, (Tensor, tuple, list)):
        raise TypeError(
            f"best_pixels: a batch is a {type(batch).__name__}, must be a map, (map, labels) or "
            "(map, labels, numbers)"
        )
    given = (batch,) if isinstance(batch, Tensor) else tuple(batch)
    if not 1 <= len(given) <= 3:
        raise TypeError(
            f"best_pixels: a batch has {len(given)} parts, must be (map, labels, numbers)"
        )
    x, labels, numbers = (*given, None, None)[:3]
    check_map("best_pixels", "a batch's map", x, input_fmt, num_prefix_tokens)
    if numbers is None:
        return x, labels, torch.arange(done, done + len(x), device="cpu")
    numbers = _of_images("numbers", numbers, len(x), (1,))
    if len(numbers) and not bool(((numbers >= 0) & (numbers <= _LOW)).all()):
        raise ValueError(
            f"best_pixels: numbers are {int(numbers.min())} … {int(numbers.max())}, must be 0 to "
            "2^32 - 1"
        )
    return x, labels, numbers


def _of_images(name: str, given: Any, count: int, dimensions: tuple[int, ...]) -> Tensor:
    """What a batch says of its images, [n] int64 or [n, K] of any dtype."""
    try:
        t = torch.as_tensor(given, device=given.device if isinstance(given, Tensor) else "cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"best_pixels: {name} are a {type(given).__name__} that is no tensor: {error}"
        ) from error
    if t.ndim not in dimensions or len(t) != count:
        either = f"({count},)" if dimensions == (1,) else f"({count},) or ({count}, classes)"
        raise ValueError(f"best_pixels: {name} are {tuple(t.shape)}, must be {either}")
    if t.ndim == 2:
        return t
    if t.is_floating_point() or t.is_complex():
        raise TypeError(f"best_pixels: {name} are {t.dtype}, must be integers")
    return t.long()


def _mask(
    allowed: Tensor,  # [K, M] bool
    labels: Any,  # [n] integers, or [n, K]; None: there are none
    count: int,
) -> Tensor:
    """Which images count for which prototypes, [n, M] bool."""
    if labels is None:
        raise TypeError("best_pixels: allowed is by class, but the batches have no labels")
    classes = _of_images("labels", labels, count, (1, 2)).to(allowed.device)
    if classes.ndim == 2:
        if classes.shape[1] != len(allowed):
            raise ValueError(
                f"best_pixels: labels are {tuple(classes.shape)} but allowed is "
                f"{tuple(allowed.shape)}, must be ({classes.shape[1]}, prototypes)"
            )
        return (classes > 0.5).float() @ allowed.float() > 0
    if len(classes) and not bool(((classes >= 0) & (classes < len(allowed))).all()):
        raise ValueError(
            f"best_pixels: labels are {int(classes.min())} … {int(classes.max())} but allowed has "
            f"{len(allowed)} rows"
        )
    return allowed[classes]


class TopPixels:
    """A running top-k along images, for every prototype or unit.

    Value and image share one integer, ``order(value) << 32 | (2^32 - 1 - image)``, where `order`
    is the float32's bits as an integer of the same order: the better value wins and, among equals,
    the lower number; `torch.topk` alone promises nothing about ties.

    Args:
        k: images to keep.
        units: M.
        largest: whether the largest values are the best, or the smallest.
        above: with `largest`, values up to this one do not count.
    """

    def __init__(
        self, k: int, units: int, *, largest: bool = True, above: float | None = None
    ) -> None:
        self.largest, self.above = largest, above
        self.key = torch.full((k, units), _NOTHING, dtype=torch.int64)
        self.pixel = torch.full((k, units), -1, dtype=torch.int32)
        self.vector: Tensor | None = None

    def update(
        self,
        value: Tensor,  # [n, M]
        pixel: Tensor,  # [n, M] int32
        images: Tensor,  # [n] int64, in 0 … 2^32 - 1
        *,
        allowed: Tensor | None = None,  # [n, M] bool
        maps: Tensor | None = None,  # [n, P, C]
    ) -> None:
        """Merge a batch. With `maps`, in every update or in none, the pixels' channels are kept.

        Raises:
            ValueError: a value that counts is NaN.
        """
        if value.device.type == "mps":  # sorts no 64-bit integers
            value, pixel = value.cpu(), pixel.cpu()
            allowed = None if allowed is None else allowed.cpu()
            maps = None if maps is None else maps.cpu()
        self.key, self.pixel = self.key.to(value.device), self.pixel.to(value.device)
        score = value.float() if self.largest else -value.float()
        counts = torch.ones_like(score, dtype=torch.bool) if allowed is None else allowed
        if bool((score.isnan() & counts).any()):
            raise ValueError("best_pixels: a similarity is NaN; check the maps and the prototypes")
        if self.above is not None:
            counts = counts & (score > self.above)
        bits = (score + 0.0).contiguous().view(torch.int32)  # + 0.0: there is one zero
        order = torch.where(bits < 0, ~bits ^ _SIGN, bits).long()
        key = (order << 32) | (_LOW - images.to(value.device))[:, None]
        key = torch.where(counts, key, _NOTHING)
        self.key, place = torch.cat([self.key, key]).topk(len(self.key), dim=0)
        self.pixel = torch.cat([self.pixel, pixel]).gather(0, place)
        if maps is not None:
            self._keep(maps, place)

    def _keep(self, maps: Tensor, place: Tensor) -> None:
        """Take over the vectors of what stayed, and read those of what is new."""
        k, units = place.shape
        if self.vector is None:
            self.vector = maps.new_zeros(k, units, maps.shape[2])
        dtype = torch.promote_types(self.vector.dtype, maps.dtype)  # of batches of several
        self.vector = self.vector.to(dtype)
        stayed = place.clamp_max(k - 1)[:, :, None].expand_as(self.vector)
        self.vector = self.vector.gather(0, stayed)
        new = (place >= k) & (self.key != _NOTHING)
        rank, unit = new.nonzero(as_tuple=True)
        rows = maps[place[rank, unit] - k, self.pixel[rank, unit].long()]
        self.vector[rank, unit] = rows.to(dtype)

    def gather(self) -> None:
        """Merge with what the other processes have seen, see `infodisent.ranks`: the same in all.

        Exact: the images' numbers decide between equal values, not who saw them.
        """
        if ranks.world() == 1:
            return
        k, units = self.key.shape
        own = None if self.vector is None else (self.vector.dtype, self.vector.shape[2])
        # a process that has seen no image must send as much as the others, from where they do
        everyones = ranks.everyones((self.key.device.type, own))
        if self.key.device.type == "cpu" and "cuda" in {kind for kind, _ in everyones}:
            self.key, self.pixel = self.key.cuda(), self.pixel.cuda()
        vectors = [kept for _, kept in everyones if kept is not None]
        if vectors:
            dtype = functools.reduce(torch.promote_types, (dtype for dtype, _ in vectors))
            if self.vector is None:
                self.vector = self.key.new_zeros(k, units, vectors[0][1], dtype=dtype)
            self.vector = self.vector.to(dtype)
        pixel = ranks.gathered(self.pixel)
        vector = None if self.vector is None else ranks.gathered(self.vector)
        self.key, place = ranks.gathered(self.key).topk(k, dim=0)
        self.pixel = pixel.gather(0, place)
        if vector is not None:
            self.vector = vector.gather(0, place[:, :, None].expand(-1, -1, vector.shape[2]))

    def result(self) -> BestPixels:
        """On the CPU."""
        key = self.key.cpu()
        filled = key != _NOTHING
        order = (key >> 32).to(torch.int32)
        score = torch.where(order < 0, ~(order ^ _SIGN), order).view(torch.float32)
        value = torch.where(filled, score if self.largest else -score + 0.0, torch.nan)
        image = torch.where(filled, _LOW - (key & _LOW), -1)
        index = torch.where(filled, self.pixel.cpu(), -1)
        vector = None if self.vector is None else self.vector.cpu()
        return BestPixels(value, image, index, vector)
