"""A head unlike InfoDisent's, to show what a method needs: this file and a line in the list."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from infodisent.contract import SparsePool
from infodisent.layout import to_bpc
from infodisent.methods.base import Head
from infodisent.methods.stages import Stage


class PrototypeHead(Head):
    """The largest product of a pixel with each of M vectors, ``per_class`` vectors a class.

    One-sided (no negative evidence in the pool), with weights of either sign, more units than
    channels, a penalty on the pool, and two stages: the vectors, which start on patches of their
    own class, and then the last layer alone.
    """

    method = "toy"
    title = "Toy prototypes"
    unit = "prototype"
    loss_needs_pool = True
    started: ClassVar[list[str]] = []  # stages begun, of all heads of a test

    def __init__(
        self,
        in_features,
        num_classes,
        *,
        input_fmt="NCHW",
        num_prefix_tokens=0,
        per_class=3,
        drop_rate=0.0,
        device=None,
        dtype=None,
    ):
        units = per_class * max(1, num_classes)
        super().__init__(
            in_features,
            units,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
        )
        self.per_class, self.num_classes = per_class, num_classes
        self.vectors = nn.Parameter(torch.rand(units, in_features, device=device, dtype=dtype))
        self.last = nn.Linear(units, num_classes, device=device, dtype=dtype)
        with torch.no_grad():
            self.last.weight.copy_(1.5 * self.own().mT.float() - 0.5)
            self.last.bias.zero_()

    def own(self):
        """[M, K]: 1 where a prototype belongs to a class."""
        return torch.eye(self.num_classes).repeat_interleave(self.per_class, 0)

    def pool(self, x, *, input_fmt=None):
        layout = self.layout(input_fmt)
        maps = to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"])
        value, place = (maps.to(self.vectors.dtype) @ self.vectors.mT).clamp_min(0).max(1)
        none = torch.full_like(place, -1, dtype=torch.int32)
        index = torch.where(value > 0, place.int(), none)
        return SparsePool(value, value, torch.zeros_like(value), index, none)

    def classify(self, pooled):
        return self.last(self.drop(pooled).to(self.last.weight.dtype))

    def class_weights(self):
        return self.last.weight

    def offsets(self, classes):
        return self.last.bias[classes]

    def maps(self, pixels, units):
        return (pixels.to(self.vectors.dtype) @ self.vectors[units].mT).clamp_min(0).float()

    def stages(self, config):
        return (
            Stage("prototypes", [{"params": [self.vectors], "lr": config.rotation_lr}], epochs=3),
            Stage(
                "last layer",
                [{"params": list(self.last.parameters()), "lr": config.lr}],
                pool_is_fixed=True,
            ),
        )

    def start_stage(self, stage, batches):
        PrototypeHead.started.append(stage.name)
        if stage.name != "prototypes":
            return
        firsts: dict[int, list[torch.Tensor]] = {}
        for maps, labels, _ in batches():
            for pixels, label in zip(maps, labels.tolist(), strict=True):
                firsts.setdefault(label, []).append(pixels.mean(0))
        for unit in range(self.num_features):
            label, which = divmod(unit, self.per_class)
            patch = firsts[label][which % len(firsts[label])]
            self.vectors[unit] = patch / patch.norm()

    def penalty(self, config, batch):
        own = self.own()[:, batch.labels].mT.to(batch.pooled)  # [n, M]
        scale = config.statistics.feature_scale
        return -0.01 * config.l1 * (batch.pooled * own).amax(1).mean() / scale

    def after_step(self):
        if self.vectors.requires_grad:  # not where the pool is fixed
            with torch.no_grad():
                self.vectors.div_(self.vectors.norm(dim=1, keepdim=True))

    def ablations(self):
        return {"one each": {"per_class": 1}} if self.per_class > 1 else {}

    def reset(self, num_classes, pool_type=None):
        if pool_type is not None:
            raise ValueError("one pool only")
        self.__init__(
            self.in_features, num_classes, **self.layout(), **self.options(),
            device=self.device, dtype=self.vectors.dtype,
        )  # fmt: skip
