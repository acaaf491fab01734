"""`ProtoQuantHead`: a codebook of the training images' pixels, and which codes an image shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import checks, ops, ranks
from infodisent.contract import SparsePool
from infodisent.layout import to_bpc
from infodisent.methods.base import Head
from infodisent.methods.stages import Batches, Stage, TrainingBatch, TrainingOptions, part_of
from infodisent.nn.linear import NonNegativeLinear

SAMPLE, PASSES, EPOCHS = 16, 8, 100  # pixels a code at k-means' start, its passes; of the weights


class ProtoQuantHead(Head):
    """Pixels are assigned to codes by a softmax; an image has a code as its best pixel has it.

    ProtoQuant (2026, arXiv 2602.06592): ``softmax over codes of cos(x_p, v_m) / temperature``, the
    largest over the pixels, weights ReLU(W), normal around 1 at first, an L1 term. Codes: spherical
    k-means of the training pixels, streamed, started k-means++-like from a sample; those nearest to
    no pixel lose their weights. What differs: k-means alone, no moving averages, no ``log`` term.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the codes' probabilities as output.
        codes: size M of the codebook.
        temperature: of the softmax; published: 0.1.
        sparsity: strength of the classes' mean sum of weights.
        bias: add a bias to the logits.
        device, dtype, **options: of the parameters; those of `Head`, such as ``drop_rate``.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method, title, unit = "protoquant", "ProtoQuant", "code"
    fc: Any  # a NonNegativeLinear; an identity without classes
    summary = "a k-means codebook of pixels; softmax over codes, the best pixel, weights >= 0"
    paper = "ProtoQuant 2026, arXiv 2602.06592"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        codes: int = 1024,
        temperature: float = 0.03,
        sparsity: float = 1e-4,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        checks.check_positive("ProtoQuantHead", "codes", codes)
        checks.check_strengths("ProtoQuantHead", sparsity=sparsity)
        checks.check_between("ProtoQuantHead", "temperature", temperature, 0.01, 100)
        checks.check_flag("ProtoQuantHead", "bias", bias)
        super().__init__(in_features, codes, **options)
        self.codes, self.temperature, self.sparsity, self.bias = codes, temperature, sparsity, bias
        start = nn.functional.normalize(torch.randn(codes, in_features, device=device, dtype=dtype))
        self.codebook = nn.Parameter(start, requires_grad=False)  # k-means moves it, no gradient
        self.reset(num_classes)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Fresh weights; the codes stay. Raises ValueError where `pool_type` is given."""
        checks.check_classes("ProtoQuantHead", num_classes)
        checks.check_one_pool(type(self).__name__, pool_type)
        self.num_classes, self.fc = num_classes, nn.Identity()
        if num_classes:
            fc = NonNegativeLinear(self.codes, num_classes, self.bias, nonneg="relu")
            self.fc = fc.to(self.codebook).train(self.training)
            nn.init.normal_(fc.weight, 1, 0.1)

    def _unit(self, rows: Tensor) -> Tensor:  # [..., C]
        return nn.functional.normalize(rows.to(self.codebook.dtype), dim=-1, eps=1e-6)

    def pool(self, x: Tensor, *, input_fmt: str | None = None) -> SparsePool:
        """The codes' largest probabilities, see `Head.pool`; one side only."""
        unit, code = self._unit(to_bpc(x, **self.layout(input_fmt))), self._unit(self.codebook)
        best = ops.softmax_pool(unit, code, temperature=self.temperature, input_fmt="NLC")
        value, none = best.value, torch.full_like(best.index, -1)
        return SparsePool(value, value, torch.zeros_like(value), best.index, none)

    def classify(self, pooled: Tensor) -> Tensor:  # [n, M]
        """``drop(pooled) · W^T (+ b)``, ``[n, K]``."""
        return self.fc(self.drop(pooled).to(self.codebook.dtype))  # type: ignore[no-any-return]

    def class_weights(self) -> Tensor:
        """W ``[K, M]``, nonnegative."""
        return nn.functional.relu(self.fc.weight)

    def offsets(self, classes: Tensor) -> Tensor:  # [n] int64
        """The bias of each class, ``[n]``; 0 without one."""
        return self.fc.bias[classes] if self.bias else super().offsets(classes)

    def maps(self, pixels: Tensor, units: Tensor) -> Tensor:  # [P, C], [n] int64
        """Probabilities of a few codes at every pixel, ``[P, n]`` float32."""
        return self.pool(pixels[:, None], input_fmt="NLC").pos[:, units].float()

    def ignored(self, multilabel: bool) -> tuple[str, ...]:
        """The codebook does not train."""
        return (*super().ignored(multilabel), "rotation_lr")

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """The weights alone, once `start_stage` has made the codebook."""
        group = {"params": list(self.fc.parameters()), "lr": config.lr}
        return (Stage("weights", [group], epochs=EPOCHS, pool_is_fixed=True),)

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """k-means of all pixels; its start is drawn by a generator of its own."""
        generator = torch.Generator().manual_seed(0)
        step = sum(m[..., 0].numel() for m, _, _ in batches()) // (SAMPLE * self.codes)
        rows = torch.cat([self._unit(m.flatten(0, 1)[:: max(1, step)]) for m, _, _ in batches()])
        far = torch.ones_like(rows[:, 0])
        for code in self.codebook:  # k-means++: the likelier the farther from those chosen
            code.copy_(rows[int(torch.multinomial(far.cpu() + 1e-9, 1, generator=generator))])
            far = far.minimum((1 - rows @ code).clamp_min(0))
        for _ in range(PASSES):
            total = torch.zeros_like(self.codebook)
            for unit, nearest in self._nearest(batches):
                total.index_add_(0, nearest, unit)
            total = ranks.total(total)
            self.codebook.copy_(torch.where(total.any(1, True), self._unit(total), self.codebook))

    def _nearest(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels ``[n, C]`` of length 1 and codes ``[n]`` of this process's part of the images."""
        for maps, _, _ in part_of(batches)():
            unit = self._unit(maps.flatten(0, 1))
            yield unit, (unit @ self.codebook.mT).argmax(1)

    def finish(self, batches: Batches) -> None:
        """Codes that no pixel of the training images is nearest to count for nothing."""
        seen = sum(code.bincount(minlength=self.codes) for _, code in self._nearest(batches))
        self.fc.weight[:, ranks.total(torch.as_tensor(seen)) == 0] = 0

    def penalty(self, config: TrainingOptions, batch: TrainingBatch) -> Tensor | None:
        """The L1 term, the mean over the classes."""
        return self.sparsity * self.class_weights().sum() / self.num_classes

    def start_offsets(self, offsets: Tensor) -> None:  # [K]
        """The bias, where there is one, starts there."""
        if self.bias:
            self.fc.bias.data.copy_(offsets)
