"""Where a training's maps come from: a store, or a backbone that trains with the head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from infodisent import ranks
from infodisent.backbones.backbone import Backbone
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.augmentation import VIEWS, Augmentation, Augmenter, Copy, CopyDataset
from infodisent.data.extraction import weights_digest
from infodisent.data.images import collate
from infodisent.data.prefetch import prefetched
from infodisent.data.shards import CACHED
from infodisent.data.store import FeatureStore
from infodisent.data.views import ViewStore, extract_views
from infodisent.devices import autocast, sent
from infodisent.layout import to_bpc
from infodisent.methods import Stage
from infodisent.methods.stages import LoopOptions
from infodisent.progress import console
from infodisent.training.config import FitConfig
from infodisent.training.live_cost import step_cost
from infodisent.training.sources import stored_batches, window_of

LIVE_BATCH = 64
"""Images of a step with a backbone that trains, where no number is given."""

Batch = tuple[Tensor, Tensor]
"""Positions ``[n]`` int64 of a step's images, and rows of which their maps are made, ``[n, ...]``
or ``[2n, ...]``, of several processes those of this one's part: the maps themselves, ``[n, P, C]``,
or images ``[n, channels, H, W]``. See `StoredMaps.made`."""


class StoredMaps:
    """Maps that were extracted once.

    Args:
        store: of the images.
        views: of pairs, for stages with two views; None without.

    Attributes:
        store: its maps are those of the images themselves.
        module: what trains beside the head: nothing here.
    """

    module: Backbone | None = None

    def __init__(self, store: FeatureStore, views: ViewStore | None = None) -> None:
        self.store, self._views = store, views

    def epoch(
        self,
        order: Tensor,  # [n] int64
        batch_size: int,
        views: int,
        number: int,
        device: torch.device,
    ) -> Iterator[Batch]:
        """The steps of one epoch, drawing from torch's global generator.

        Args:
            order: positions of the images.
            batch_size: of a step.
            views: maps of every image: 1 or 2, see `infodisent.methods.Stage.views`.
            number: of the epoch.
            device: where the maps are wanted. Of several processes each gets its own part's.
        """
        del number  # the generator is seeded with it
        window, source = window_of(self.store, batch_size), self.store
        mine = [ranks.piece(at) for at in torch.arange(len(order)).split(batch_size)]
        if views == 1 or self._views is None:
            rows = [order[own] for own in mine]
        else:  # two views of an image lie side by side in their store, which has the same order
            source = self._views
            pairs = torch.randint(self._views.pairs, (len(order),))
            rows = [self._views.rows(order[own], pairs[own]) for own in mine]
        maps = stored_batches(source, rows, device, window)
        yield from zip(order.split(batch_size), maps, strict=True)

    def made(
        self,
        rows: Tensor,  # [n, P, C]
    ) -> Tensor:
        """The maps of a batch's rows, or of some of them, ``[n, P, C]``: the rows themselves."""
        return rows

    def check(
        self,
        views: int,
        train: Tensor,  # [n] int64
    ) -> None:
        """Raise ValueError unless there are as many views of the training images as a stage has."""
        if views == 1:
            return
        if self._views is None:
            raise ValueError(
                "fit_head: this method compares two views of every image, which this store does "
                "not have: make them by infodisent.data.views.extract_views and pass views=, or "
                "train by fit, which does"
            )
        self._views.check(self.store, train)

    def made_from(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """What the maps of these stages depend on besides the store, by name."""
        if self._views is None or not any(stage.views > 1 for stage in stages):
            return {}
        return {"views": self._views.meta["made_from"]["views"]}


class LiveMaps:
    """Maps of a backbone that trains, from augmented images, made anew in every step.

    The backbone stays in evaluation mode: batch norms keep the statistics they have and dropout is
    off, so that a step sees what an evaluation sees, however small its batch. All else trains.

    Args:
        store: of the maps before training, which names the images and their labels.
        backbone: on its device; the parameters that its map needs are made to train.
        augmentation: of the images.
        seed: of the copies.
        num_workers: decoding processes; 0 decodes in this one, between the steps.
        precision: of the backbone's products, see `FitConfig.amp`.

    Of several processes each decodes and passes its part of every step's images; a copy follows
    from the image and the epoch, not from who makes it.

    Attributes:
        store: its maps are those of the images as they are now; nothing is kept.
        module: the backbone.

    Raises:
        ValueError: `store` was made with other weights than the backbone has.
    """

    def __init__(
        self,
        store: FeatureStore,
        backbone: Backbone,
        augmentation: Augmentation,
        *,
        seed: int = 0,
        num_workers: int = 0,
        precision: torch.dtype | None = None,
    ) -> None:
        if store.meta["made_from"].get("weights") != weights_digest(backbone):
            raise ValueError(
                f"LiveMaps: {store.path} holds the maps of other weights than the backbone to be "
                "trained has; give the model as it was before training"
            )
        backbone.unfreeze()
        # as an extraction leaves it, also in a process that had nothing left to extract: other
        # kernels would round otherwise, and a run that goes on must end as one that was not cut
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        backbone.eval()
        self.module: Backbone | None = backbone
        self.store: FeatureStore = LiveStore(store, backbone, precision)
        self._precision = precision
        self._augmentation = augmentation
        self._backbone, self._seed, self._num_workers = backbone, seed, num_workers
        self._config = store.meta["transform"]
        self._augmenter = Augmenter(self._config, augmentation)

    def epoch(
        self,
        order: Tensor,  # [n] int64
        batch_size: int,
        views: int,
        number: int,
        device: torch.device,
    ) -> Iterator[Batch]:
        """The steps of one epoch, see `StoredMaps.epoch`; copies follow from seed and epoch."""
        files, batches = [self.store.files[i] for i in order.tolist()], order.split(batch_size)
        mine = [ranks.piece(at).tolist() for at in torch.arange(len(order)).split(batch_size)]
        copies = [
            Copy(files[at], (self._seed, number, at), view)
            for part in mine
            for at in part
            for view in range(views)
        ]
        ends = itertools.accumulate(len(part) * views for part in mine)
        steps = [range(end - len(part) * views, end) for part, end in zip(mine, ends, strict=True)]
        loader: Any = DataLoader(
            CopyDataset(copies, self._config, self._augmenter),
            batch_sampler=[list(step) for step in steps if len(step)],
            num_workers=self._num_workers,
            collate_fn=collate,
            generator=torch.Generator(),  # it draws a seed, which must not be of the epoch's
        )
        # not in a thread: copies are drawn from the generator that dropout draws from
        read = iter(loader)
        for positions, step in zip(batches, steps, strict=True):
            if not len(step):  # fewer images than processes
                yield positions, torch.empty(0, *self._config["input_size"], device=device)
                continue
            images = _whole(next(read))
            if views == VIEWS:  # pairs lie side by side
                images = torch.cat([images[0::2], images[1::2]])
            yield positions, sent(images, device)

    def made(
        self,
        rows: Tensor,  # [n, channels, H, W]
    ) -> Tensor:
        """The maps of images, ``[n, P, C]``, with gradients where they are on."""
        if len(rows):
            return _rows(self._backbone, rows, self._precision)
        # a pass all the same, so that every weight has a gradient, of zeros
        one = rows.new_zeros(1, *rows.shape[1:])
        return _rows(self._backbone, one, self._precision)[:0]

    def check(
        self,
        views: int,
        train: Tensor,  # [n] int64
    ) -> None:
        """Any number of views can be made."""

    def made_from(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """What the maps depend on besides the store, by name."""
        del stages
        return {"backbone": {"trains": True, "augmentation": self._augmentation.as_dict()}}


Maps = StoredMaps | LiveMaps


def training_maps(
    model: InfoDisentClassifier,
    store: FeatureStore,
    folder: Path,
    config: FitConfig,
    *,
    live: bool,
    pairs: int,
    augmentation: Augmentation,
    batch_size: int,
    num_workers: int,
    compiled: bool,
    overwrite: bool,
    progress: bool,
) -> tuple[ViewStore | None, LiveMaps | None]:
    """What `fit_head` needs besides `store`: the model's own views, or its backbone, or nothing.

    Args:
        model, store: as of `infodisent.training.run.fit`.
        folder: of the views.
        config: of the training.
        live: the backbone trains; says what that takes.
        pairs, augmentation: of the views.
        batch_size, num_workers, compiled, overwrite, progress: of the extraction of views.
    """
    views = max(stage.views for stage in model.head.stages(LoopOptions()))
    if live:
        maps = LiveMaps(
            store,
            model.backbone,
            augmentation,
            seed=config.seed,
            num_workers=num_workers,
            precision=config.precision,
        )
        if progress:
            steps = math.ceil(len(store.indices("train")) / config.batch_size)
            at_once = math.ceil(config.batch_size / (config.accumulate * ranks.world()))
            console.print(step_cost(model.backbone, store, at_once, views, steps))
        return None, maps
    if views == 1:
        return None, None
    made = extract_views(
        model,
        store,
        folder,
        pairs=pairs,
        augmentation=augmentation,
        seed=config.seed,
        batch_size=batch_size,
        num_workers=num_workers,
        compiled=compiled,
        overwrite=overwrite,
        progress=progress,
    )
    return made, None


def trained(backbone: Backbone) -> None:
    """Freeze a backbone that has been trained; its original classifier fits it no more."""
    backbone.freeze()
    backbone.trained, backbone.num_classes = True, 0


class LiveStore(FeatureStore):
    """A store whose maps are computed when they are asked for, by a backbone as it is then.

    Args:
        store: has the images, labels and sizes.
        backbone: on its device.
        precision: of its products, see `FitConfig.amp`.
    """

    def __init__(
        self, store: FeatureStore, backbone: Backbone, precision: torch.dtype | None = None
    ) -> None:
        self.__dict__.update(store.__dict__)
        self._backbone, self._precision, self._resident = backbone, precision, None

    @torch.no_grad()
    def gather(
        self,
        indices: Tensor,  # [n] int64
        dtype: torch.dtype | None = torch.float32,
    ) -> Tensor:
        """The maps of the images at `indices`, ``[n, P, C]``, on the backbone's device."""
        copies = [Copy(self.files[i]) for i in indices.tolist()]
        dataset = CopyDataset(copies, self.meta["transform"])
        loader: Any = DataLoader(dataset, CACHED, collate_fn=collate, generator=torch.Generator())
        weight = next(self._backbone.parameters())
        maps = [_rows(self._backbone, _whole(read), self._precision) for read in prefetched(loader)]
        if not maps:
            return torch.empty(0, self.pixels, self.channels, dtype=dtype or weight.dtype)
        return torch.cat(maps).to(dtype or weight.dtype)

    def files_of_maps(self, threads: int = 4) -> None:
        """None: what the files hold was made before."""
        del threads

    def average(
        self,
        indices: Tensor | None = None,  # [n] int64
    ) -> Tensor:
        """See `FeatureStore.average`."""
        indices = torch.arange(len(self)) if indices is None else indices
        return torch.cat([self.gather(part).mean(1).cpu() for part in indices.split(64)])


def state_of(head: nn.Module, maps: Maps) -> dict[str, Tensor]:
    """A copy of everything that trains: the head's state, and the backbone's as ``backbone.…``."""
    state = {name: value.clone() for name, value in head.state_dict().items()}
    if maps.module is not None:
        values = maps.module.state_dict().items()
        state |= {f"backbone.{name}": value.clone() for name, value in values}
    return state


def restore_state(head: nn.Module, maps: Maps, state: dict[str, Tensor]) -> None:
    """Load what `state_of` has copied."""
    prefix = "backbone."
    own = {name: value for name, value in state.items() if not name.startswith(prefix)}
    head.load_state_dict(own)
    if maps.module is not None:
        maps.module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def _whole(read: Sequence[Any]) -> Tensor:
    """The images of a batch, all of which must be there: they were read before training."""
    _, images, bad, _ = read
    if bad or images is None:
        raise ValueError(f"fit_head: an image cannot be read any more: {bad[0][1]}")
    batch: Tensor = images
    return batch


def _rows(
    backbone: Backbone,
    images: Tensor,  # [n, channels, H, W]
    precision: torch.dtype | None,
) -> Tensor:
    """Maps ``[n, P, C]``, with gradients where they are on."""
    weight = next(backbone.parameters())
    images = images.to(weight.device, weight.dtype, memory_format=torch.channels_last)
    with autocast(precision, weight.device):
        raw = backbone(images)
    return to_bpc(raw, backbone.input_fmt, backbone.num_prefix_tokens)
