"""Train a head from stored features: resumable, repeatable, the same on every run of a seed."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.data.store import FeatureStore
from infodisent.data.views import ViewStore
from infodisent.devices import own_generators, seed_generators
from infodisent.methods import DEFAULT, Head, build_head
from infodisent.methods.stages import TrainingStatistics
from infodisent.progress import bar
from infodisent.training.config import FitConfig
from infodisent.training.course import Course, stops_early
from infodisent.training.epochs import Training as _Training
from infodisent.training.maps import LiveMaps, Maps, StoredMaps
from infodisent.training.objective import class_counts, class_pull, objective
from infodisent.training.objective import feature_scale as _feature_scale
from infodisent.training.profiling import profiled
from infodisent.training.state import RECIPE, SavedState, identity, save_state
from infodisent.training.steps import Tools
from infodisent.training.validation import split_validation

__all__ = ["Callback", "FitConfig", "compared_heads", "fit_head", "new_head"]

Callback = Callable[[int, dict[str, float]], object]
"""Called after an epoch with its number, from 1, and its figures, see `fit_head`."""


def new_head(
    channels: int,
    classes: int,
    seed: int,
    like: Head | None = None,
    *,
    method: str | None = None,
    **options: Any,
) -> Head:
    """A head whose initial weights depend on `seed` alone.

    Args:
        channels, classes: C of the map and K.
        seed: of the weights; the caller's random numbers go on as before.
        like: a head that lends its layout and its method.
        method: of the head, one of `infodisent.methods.METHODS`; default: that of `like`, if given.
        **options: of the method.
    """
    layout: dict[str, Any] = {} if like is None else like.layout()
    if method is None:
        method = DEFAULT if like is None else like.method
    device = torch.device(options.get("device") or "cpu")
    with own_generators(device):
        seed_generators(seed, device)
        return build_head(method, channels, classes, **layout, **options)


def compared_heads(head: Head, seed: int) -> Iterator[tuple[str, Head]]:
    """The heads that `infodisent.training.run.fit` trains for comparison, one after the other.

    Args:
        head: that they are compared with, see `Head.ablations`.
        seed: of their weights.
    """
    for title, changes in head.ablations().items():
        options = {**head.options(), **changes}
        other = new_head(head.in_features, head.num_classes, seed, method=head.method, **options)
        yield title, other.to(head.device)


def fit_head(
    head: Head,
    store: FeatureStore,
    config: FitConfig | None = None,
    *,
    train: Tensor | None = None,  # [n] int64
    views: ViewStore | None = None,
    live: LiveMaps | None = None,
    state: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    profile: str | os.PathLike[str] | None = None,
    progress: bool = True,
    label: str = "train head",
) -> list[dict[str, float]]:
    """Minimise cross-entropy + the head's penalty over the stored training images, in place.

    The head says what trains, in which stages and at which rates (`Head.stages`). Of a multi-label
    store the loss is the mean binary cross-entropy of the labels; give the head a bias there
    (``bias=True``), which starts at the labels' log-odds.

    Several processes (`infodisent.ranks`) pool a part of every batch each; what one process would
    do comes out, up to the order of sums. Dropout draws the same numbers everywhere.

    No step waits for the device: loss and accuracy are summed there and read every few steps, when
    a loss that is no number ends the training.

    Args:
        head: its initial weights are used, see `new_head`; trained on the device it is on.
        store: features; maps are read batch by batch, never all at once.
        config: default `FitConfig()`.
        train: positions of the training images; default: the store's "train" split.
        views: pairs of augmented copies of the training images, for methods with stages of two
            views, see `infodisent.data.views.extract_views`; others leave it alone.
        live: a backbone that trains with the head, from the images of `store`, whose maps it made
            before; in the optimiser of every stage that trains what the pool depends on, at
            ``config.backbone_lr``. It is trained in place, and its state is in `state`.
        state: a file for the state after every epoch. If it exists, training goes on from it, in
            the stage where it stopped, and ends exactly where an uninterrupted run ends; a state of
            other options is refused. A *finished* run goes on, up to ``config.epochs``, if that is
            larger than it was, also one that `patience` ended: the added epochs start from its
            weights (the best, under `patience`, which counts anew) with a new optimiser and a
            schedule of their own, which is not what one run of so many epochs gives.
        callbacks: called after every epoch that is trained here, in order; of several processes
            by the leading one. TensorBoard::

                writer = torch.utils.tensorboard.SummaryWriter("logs")
                callbacks=[lambda epoch, figures: [writer.add_scalar(*f, epoch) for f in figures.items()]]

            wandb::

                run = wandb.init(project="solar cells")
                callbacks=[lambda epoch, figures: run.log(figures, step=epoch)]

        profile: a folder for what torch's profiler says of a few steps, see
            `infodisent.training.profiling.profiled`; of several processes the leading one's.
        progress: show a progress bar.
        label: what the bar calls the work.

    Returns:
        Per epoch ``{"loss": mean objective, "accuracy": on the training batches}``, and with
        ``config.validation`` also ``validation_loss`` (without the penalty),
        ``validation_accuracy`` and ``validation_balanced_accuracy``.

    Raises:
        ValueError: the head does not fit the store, there are no training images, the method needs
            `views` or does not learn several labels, the loss is not finite, `state` belongs to
            another run, or an option does not fit the images.

    Warns:
        UserWarning: an option was given that the method has no use for, see `Head.ignored`.
    """  # noqa: E501
    config = config or FitConfig()
    if head.num_classes != len(store.classes):
        raise ValueError(
            f"fit_head: the head has {head.num_classes} classes, the store {len(store.classes)}"
        )
    if head.in_features != store.channels:
        raise ValueError(
            f"fit_head: the head takes {head.in_features} channels, the store has {store.channels}"
        )
    if store.task == "multilabel" and not head.multilabel:
        raise ValueError(f"fit_head: {head.title} does not learn images with several labels")
    _warn_of_ignored(head, config, store.task == "multilabel")
    train = store.indices("train") if train is None else train
    if not len(train):
        raise ValueError("fit_head: there are no training images")
    given, validation = train, train[:0]
    if config.validation:
        train, validation = split_validation(store, train, config.validation, config.seed)
    saved = SavedState(Path(state)) if state is not None and Path(state).is_file() else None
    recipe = RECIPE if saved is None else saved.recipe
    chosen = config if recipe > 1 else _as_version_01(config)
    loss = objective(store, train, chosen)
    scale = _feature_scale(store, train)
    if not math.isfinite(scale):
        raise ValueError(
            f"fit_head: the mean feature of {store.path} is {scale}: NaN, Inf or far too large ones"
        )
    pull = class_pull(store, train, chosen, loss)
    pull = pull if recipe > 1 else torch.ones_like(pull)
    known = chosen.knowing(TrainingStatistics(scale, pull.to(head.device)))
    steps = math.ceil(len(train) / config.batch_size)
    epochs = config.epochs or max(15, math.ceil(120 / steps))
    maps: Maps = StoredMaps(store, views) if live is None else live
    # without a backbone that trains, a stage of its own may have nothing to train
    stages = [s for s in head.stages(known) if s.parameters() or maps.module is not None]
    if any(stage.views > 1 for stage in stages):
        maps.check(2, given)
    # a method of one stage takes the number that is given, though it has one of its own
    own = config.epochs if len(stages) == 1 else None
    schedule = [(stage.name, own or stage.epochs or epochs) for stage in stages]
    run = identity(head, store, given, config, schedule, recipe, maps.made_from(stages))
    if saved is not None:
        early = stops_early(stages, len(stages) - 1)
        saved.check(run, config.patience if early else None)
        saved.restore_head(head, maps.module)
    elif loss.multilabel:
        positive = class_counts(store, train)
        head.start_offsets(((positive + 0.5) / (len(train) - positive + 0.5)).log())
    with bar(progress) as display, own_generators(head.device):
        course = Course(head, maps, config, stages, schedule, saved, display, steps)
        course.show(label, loss.name)

        def keep(tools: Tools) -> None:
            course.epoch_ended(tools)
            if state is not None and ranks.leads():
                save_state(
                    Path(state), run, head, tools.optimizer, course.history, **course.extra(tools)
                )
            for callback in callbacks if ranks.leads() else ():
                callback(len(course.history), dict(course.history[-1]))

        with profiled(profile if ranks.leads() else None, head.device) as tick:
            training = _Training(
                head,
                maps,
                train,
                config,
                known,
                loss.to(head.device),
                validation,
                course.history,
                course.advance,
                keep,
                tick,
            )
            course.run(training)
        display.update(course.task, completed=course.total * steps)
    training.finish()
    return course.history


def _warn_of_ignored(head: Head, config: FitConfig, multilabel: bool) -> None:
    """Of options that were given and do nothing."""
    usual = FitConfig()
    given = [
        f"{name} ({getattr(config, name)})"
        for name in head.ignored(multilabel)
        if getattr(config, name) != getattr(usual, name)
    ]
    if given and ranks.leads():
        warnings.warn(f"fit_head: {head.title} has no use for {', '.join(given)}", stacklevel=3)


def _as_version_01(config: FitConfig) -> FitConfig:
    """What version 0.1 did where an option is left to the images."""
    return dataclasses.replace(
        config,
        lr=1e-2 if config.lr is None else config.lr,
        logit_adjustment=config.logit_adjustment or 0.0,
    )
