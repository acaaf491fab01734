"""A pretrained classifier read as "feature map, then head".

`Backbone` keeps the whole original model and offers both readings of it: the map an InfoDisent head
is fed with, and the original logits. What lies where comes from the model's own attributes
(`output_fmt`, `num_prefix_tokens`, the children of its head), is written down as a `HeadPlan`, and
is proved once when the backbone is made: a forward pass must have the shape the attributes promise,
and the plan must reproduce the original head's logits from random features. A model that fails
either is refused; none is served by a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from infodisent.backbones import freezing
from infodisent.backbones.plan import HeadPlan, class_names
from infodisent.layout import map_size, to_bpc


def on_vectors(module: nn.Module, v: Tensor) -> Tensor:
    """Apply a head's module to vectors ``[N, C]``, in the shape the original pool would give it."""
    if isinstance(module, nn.Flatten):
        return v
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    if any(isinstance(m, kinds) or type(m).__name__.endswith("2d") for m in module.modules()):
        v = module(v[:, :, None, None]).flatten(1)
    else:
        v = module(v)
    return v


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and every module's own mode again afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """Normal noise of `like`'s device and dtype that leaves the global generators alone."""
    if like.is_meta:
        return like.new_empty(shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)


class Backbone(nn.Module):
    """A whole pretrained classifier, run up to the map its head pools.

    Args:
        model: the classifier, kept as `model`; its own head stays in it, so its logits stay there.
        plan: how its head works, from `timm_plan` or `infodisent.backbones.torchvision`.
        features, classifier: ``(model, images) -> raw`` and ``(model, raw) -> logits [B, K]``, for
            models without forward_features and forward_head.
        freeze: no parameter trains and the model stays in eval mode, see `freeze`. Otherwise the
            parameters the map depends on train, the original classifier does not.
        image_size, in_chans: height and width, and channels, of the images it was built for.

    Attributes:
        input_fmt, num_prefix_tokens: layout of the map; num_features: its channels.
        num_classes: the original's classes, 0 where it has no classifier.
        model, plan, image_size, in_chans: as given.
        trained: False where the weights are random as far as is known: built by name without the
            published weights, and none loaded since.
        class_names: of the original's classes, index = logit, or None where it doesn't say.
        assumed: {} where the model's mean and std are known; else "mean", the one that was assumed,
            and "said", a sentence.
        adapter: JSON-able arguments of `attach` that say how the module is read, {} for none.
        pretrained_cfg: input size, mean, std, interpolation … as timm names them.
        built_size: height and width that the model's modules said when it was read, or None.
        origin: JSON-able: source, name and model_kwargs that build the model again; name None where
            it was an instance, or built with arguments that JSON can't hold.

    Raises ValueError where the features are not one map laid out as the model's attributes say, or
    where its head computes something the plan does not reproduce.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: HeadPlan,
        *,
        features: Callable[[Any, Tensor], Any] | None = None,
        classifier: Callable[[Any, Tensor], Any] | None = None,
        freeze: bool = True,
        image_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.model, self.plan = model, plan
        self.image_size, self.in_chans = image_size, in_chans
        self.input_fmt, self.num_prefix_tokens = plan.input_fmt, plan.num_prefix_tokens
        self.num_features = self.num_classes = 0
        self.pretrained_cfg: dict[str, Any] = {}
        self.built_size: tuple[int, int] | None = None
        self.origin: dict[str, Any] = {"source": None, "name": None, "model_kwargs": {}}
        self.adapter: dict[str, Any] = {}
        self.trained = True
        self.assumed: dict[str, Any] = {}
        self.class_names: tuple[str, ...] | None = None
        self._name = type(model).__name__
        self._features = features or _forward_features
        self._classifier = classifier or _forward_head
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        self._check()
        self.training = model.training
        if freeze:
            self.freeze()
        else:  # what the map doesn't depend on has no gradient, which DDP takes for an error
            wanted = {n for n, p in model.named_parameters() if p.requires_grad}
            freezing.train_only(model, wanted & set(self.map_parameters()))

    @property
    def frozen(self) -> bool:
        """No parameter trains. Setting it is `freeze()` or `unfreeze()`."""
        return not any(p.requires_grad for p in self.model.parameters())

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self.freeze() if value else self.unfreeze()

    def freeze(self) -> Backbone:
        """No parameter trains, and the model stays in eval mode, whatever `train` says.

        Its graph stays: gradients flow through it to images that ask for them.
        """
        self.requires_grad_(False)
        return self.eval()

    def unfreeze(self, last: int | str = "all") -> Backbone:
        """Let the last stages train, and nothing else; call ``model.train()`` afterwards.

        Parts without a parameter that trains stay in eval mode: their batch norms keep their
        statistics and their dropout is off. Parameters the map doesn't depend on, such as the
        original classifier's, never train.

        Args:
            last: how many of `stages`, from the end, or "all".

        Raises:
            ValueError: not one of them.
        """
        freezing.train_only(self.model, freezing.chosen(self.stages(), last, self._name))
        return self

    def stages(self) -> dict[str, list[str]]:
        """Stages, or blocks, in the order they run: a name each, and parameters the map needs."""
        return freezing.stages(self.model, self.map_parameters())

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode, but for parts in which no parameter trains: they stay in eval mode."""
        super().train(mode and not self.frozen)
        for part in freezing.frozen_parts(self.model) if self.training else ():
            part.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the map, in layout `input_fmt`."""
        return self.to_map(self.raw(x))

    def raw(self, x: Tensor) -> Any:
        """What the original's ``forward_features`` returns, as it comes.

        Where neither a parameter nor `x` asks for a gradient, autograd keeps nothing. A forward
        hook of the user's on a layer gets activations that have a gradient even then.
        """
        if freezing.is_watched(self.model, x):
            x = x.detach().requires_grad_()
        return self._features(self.model, x)

    def to_map(self, raw: Tensor) -> Tensor:
        """`raw` with the head's own per-pixel modules (norm, 1x1 convolution) applied."""
        return self._per_pixel(self._arrange(raw), self.plan.before + self.plan.after)

    def classify(self, raw: Tensor) -> Tensor:
        """The original head's logits ``[B, K]``; ValueError where it has no classifier."""
        if not self.num_classes:
            raise ValueError(f"{self._name} has no classifier of its own (num_classes=0)")
        logits: Tensor = self._classifier(self.model, raw)
        return logits

    def pooled_logits(self, raw: Tensor) -> Tensor:
        """The original logits ``[B, K]``, recomputed from `raw` with the plan alone.

        The pixels are averaged here (class-token models: the token is put back), then come the
        head's norm, hidden layer and classifier. Equal to `classify` only if the plan is right;
        ValueError where the original does not classify the average of its pixels.
        """
        plan = self.plan
        if plan.opaque:
            raise ValueError(f"{self._name}: logits cannot be recomputed, {plan.opaque}")
        x = self._per_pixel(self._arrange(raw), plan.before)
        mean = to_bpc(x, plan.input_fmt, plan.num_prefix_tokens).mean(dim=1)
        logits = []
        for i, tail in enumerate(plan.tails):
            v = x[:, i] if plan.pool == "token" else mean  # one prefix token for each classifier
            for path in plan.after + tail:
                v = on_vectors(self.model.get_submodule(path), v)
            logits.append(v)
        return torch.stack(logits).mean(dim=0)

    def grid_size(self, image_size: int | Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the map for images of `image_size` (side, or height and width).

        A size not seen before costs a forward pass of one image. ValueError where the model refuses
        the size, or its tokens fill no grid its attributes suggest.
        """
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        size = (int(height), int(width))
        if size not in self._grids:
            try:
                raw = self._probe(size)[1]
            except Exception as error:
                raise ValueError(
                    f"grid_size: {self._name} does not take {height} x {width} images: {error}"
                ) from error
            self._grids[size] = self._grid(self._arrange(raw), size)
        return self._grids[size]

    def _arrange(self, raw: Tensor) -> Tensor:
        # Hiera's tokens are grouped by mask unit: its own `reroll` gives rows and columns back.
        if "Hiera" in class_names(self.model):
            hiera: Any = self.model
            raw = hiera.reroll(raw, len(hiera.blocks) - 1)
        return raw

    def _per_pixel(self, x: Tensor, paths: tuple[str, ...]) -> Tensor:
        """Apply per-vector modules at every pixel (and prefix token) of a map of any layout."""
        modules = [self.model.get_submodule(path) for path in paths]
        modules = [module for module in modules if not isinstance(module, nn.Identity)]
        if not modules:
            return x
        channels_last = x.movedim(1, -1) if self.input_fmt == "NCHW" else x
        v = channels_last.flatten(0, -2)  # [N, C]
        for module in modules:
            v = on_vectors(module, v)
        y = v.reshape(*channels_last.shape[:-1], v.shape[-1])
        return y.movedim(-1, 1) if self.input_fmt == "NCHW" else y

    def _grid(self, x: Tensor, size: tuple[int, int]) -> tuple[int, int]:
        if self.input_fmt != "NLC":
            first = 2 if self.input_fmt == "NCHW" else 1
            return x.shape[first], x.shape[first + 1]
        pixels = x.shape[1] - self.num_prefix_tokens
        guesses = []
        embed: Any = getattr(self.model, "patch_embed", None)
        if hasattr(embed, "dynamic_feat_size"):
            guesses.append(tuple(embed.dynamic_feat_size(size)))
        info = getattr(self.model, "feature_info", None)
        stride = info[-1]["reduction"] if isinstance(info, list) and info else None
        stride = stride or getattr(self.model, "patch_size", None)
        if isinstance(stride, int):
            guesses += [tuple(-(-s // stride) for s in size), tuple(s // stride for s in size)]
        if size[0] == size[1]:
            guesses.append((math.isqrt(pixels),) * 2)
        for rows, columns in guesses:
            if rows * columns == pixels:
                return rows, columns
        raise ValueError(
            f"{self._name}: {pixels} tokens for {size[0]} x {size[1]} images fill none of the "
            f"grids {guesses} that its attributes suggest"
        )

    def _probe(self, size: tuple[int, int]) -> tuple[Tensor, Any]:
        x = noise((1, self.in_chans, *size), next(self.model.parameters()))
        with evaluating(self.model), torch.no_grad():
            return x, self.raw(x)

    def _check(self) -> None:
        """Run one image, prove layout and plan, and fill in what only a run can tell."""
        fmt, prefix = self.input_fmt, self.num_prefix_tokens
        x, raw = self._probe(self.image_size)
        if not isinstance(raw, Tensor):
            raise ValueError(
                f"{self._name}: its features are a {type(raw).__name__}, not one map; choose one "
                "of them: attach(model, K, features=lambda m, x: m.forward_features(x)[-1])"
            )
        with evaluating(self.model), torch.no_grad():
            arranged = self._arrange(raw)
            shape = f"{self._name}: features are {tuple(raw.shape)} for images {tuple(x.shape)}"
            if arranged.ndim != len(fmt):
                why = "its attributes don't say which tokens are pixels"
                raise ValueError(f"{shape}, where {fmt} was expected: {why}")
            channels, pixels = map_size(arranged, fmt, prefix)
            own = self._features is _forward_features
            promised = getattr(self.model, "num_features", channels) if own else channels
            if channels != promised or pixels < 1:
                raise ValueError(
                    f"{shape}: as {fmt} with {prefix} prefix tokens that is {channels} channels at "
                    f"{pixels} pixels, but num_features is {promised}"
                )
            self._grids[self.image_size] = self._grid(arranged, self.image_size)
            self.num_features = map_size(self.to_map(raw), fmt)[0]
            if self.plan.pool:  # without a pool the original's head has no logits to offer
                self._check_head(x, raw)

    def _check_head(self, x: Tensor, raw: Tensor) -> None:
        logits = self._classifier(self.model, raw)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ValueError(f"{self._name}: its head does not return logits [B, K]")
        layers = [self.model.get_submodule(tail[-1]) for tail in self.plan.tails]
        removed = any(isinstance(layer, nn.Identity) for layer in layers)
        if getattr(self.model, "num_classes", 1) and not removed:
            self.num_classes = logits.shape[1]
        if raw.is_meta:
            return
        if self._features is not _forward_features:
            self._prove("its stages in order", logits, lambda: logits_in(self.model(x)))
        if not self.plan.opaque:
            random = noise((2, *raw.shape[1:]), raw)
            logits = self._classifier(self.model, random)
            self._prove("its head as read here", logits, lambda: self.pooled_logits(random))

    def _prove(self, what: str, want: Tensor, compute: Callable[[], Tensor]) -> None:
        tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(want.dtype, 5e-2)
        try:
            error = (compute() - want).abs().max() / (1e-6 + want.abs().max())
        except RuntimeError as failure:  # shapes that do not fit
            raise ValueError(f"{self._name} is not supported: {what} fails: {failure}") from failure
        if not error <= tolerance:
            raise ValueError(
                f"{self._name} is not supported: {what} is not what the model computes "
                f"(relative difference {error:.1e})"
            )

    def map_parameters(self) -> list[str]:
        """Names of the model's parameters that the map depends on; costs a pass of one image."""
        weights = {n: p for n, p in self.model.named_parameters() if p.is_floating_point()}
        asked = [p.requires_grad for p in weights.values()]
        x = noise((1, self.in_chans, *self.image_size), next(self.model.parameters()))
        try:
            self.model.requires_grad_(True)
            with evaluating(self.model), torch.enable_grad():
                total = self(x).float().sum()
                grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        finally:
            for weight, asks in zip(weights.values(), asked, strict=True):
                weight.requires_grad_(asks)
        return [n for n, grad in zip(weights, grads, strict=True) if grad is not None]


def _are_probabilities_of(first: Any, second: Any = None) -> bool:
    """Whether a pair is a softmax and the logits it is of, as some models return in eval mode."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    same = first.shape == second.shape and first.ndim == 2 and not first.is_meta
    return same and torch.allclose(second.softmax(dim=1), first, rtol=1e-3, atol=1e-5)


def logits_in(output: Any) -> Tensor:
    """The logits in what a classifier returns: a tensor, or one under "logits", or the first."""
    if isinstance(output, dict):
        output = output.get("logits", next(iter(output.values()), None))
    elif isinstance(output, (tuple, list)) and output:
        output = output[int(_are_probabilities_of(*output[:2]))]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise RuntimeError(f"it returns a {type(output).__name__}, not logits")
    return output


class HasBackbone(Protocol):
    """A model that keeps its backbone under that name, such as `InfoDisentClassifier`."""

    @property
    def backbone(self) -> Backbone:
        """The backbone."""


def backbone_of(model: Backbone | HasBackbone) -> Backbone:
    """The backbone itself, or that of a model that has one."""
    return model if isinstance(model, Backbone) else model.backbone


def _forward_features(model: Any, x: Tensor) -> Any:
    return model.forward_features(x)


def _forward_head(model: Any, raw: Tensor) -> Any:
    return model.forward_head(raw)
