"""Figures of a head on images with any number of labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.evaluation.arguments import check_label_rows, check_tensor
from infodisent.evaluation.size_figures import Sizes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def finite_logits(
    logits: Tensor,
) -> Tensor:
    """Logits of any device and dtype as float32 on the CPU; ValueError where one is NaN or Inf."""
    logits = logits.float().cpu()
    if not torch.isfinite(logits).all():
        raise ValueError("evaluate: the logits hold NaN or Inf; check the weights")
    return logits


def whole_figures(evaluation: DataclassInstance) -> dict[str, Any]:
    """The fields of an evaluation, JSON-able; without those of single classes."""
    values = asdict(evaluation)
    del values["recall"], values["counts"]
    return values


@dataclass(frozen=True)
class MultilabelEvaluation:
    """Figures on one multi-label set. Averages are over the labels that have what they need.

    Attributes:
        images: how many.
        mean_ap: mean over labels of the average precision (labels with positives).
        auroc: mean over labels of the area under the ROC curve (labels with both kinds); None if
            there is no such label.
        f1: mean over labels of F1 where a label is predicted at a probability above 0.5 (labels
            with positives).
        subset_accuracy: part of the images of which every label is right at 0.5.
        loss: mean binary cross-entropy over images and labels, nats.
        explanation_size, explained, magnitude_size, units_used: as in `Evaluation`, of each image's
            likeliest label.
        recall: of every label's positives at 0.5, K numbers; None where it has none.
        counts: positives of every label.
    """

    images: int
    mean_ap: float | None
    auroc: float | None
    f1: float | None
    subset_accuracy: float
    loss: float
    explanation_size: float | None = None
    explained: float | None = None
    magnitude_size: float | None = None
    units_used: int | None = None
    recall: tuple[float | None, ...] = ()
    counts: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures, JSON-able; without those of single labels."""
        return whole_figures(self)


class MultilabelFigures:
    """Gathers the figures of a `MultilabelEvaluation` from batches.

    Args:
        classes: labels K.
        units_used: of the head, where there is one.
    """

    def __init__(self, classes: int, *, units_used: int | None = None) -> None:
        self._classes = classes
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._sizes = Sizes(units_used)

    def update(
        self,
        logits: Tensor,  # [n, K]
        labels: Tensor,  # [n, K] float32
        contributions: Tensor | None = None,  # [n, M]
    ) -> None:
        """Add a batch, as `Figures.update` does.

        Raises:
            TypeError: a table is no tensor.
            ValueError: shapes differ, a label is neither 0 nor 1, or a logit is NaN or Inf.
        """
        check_tensor("evaluate", "logits", logits, "images", self._classes)
        check_label_rows("evaluate", "labels", labels, len(logits), self._classes)
        logits = finite_logits(logits)
        self._logits.append(logits)
        self._labels.append(labels.cpu())
        self._sizes.update(contributions)

    def evaluation(self) -> MultilabelEvaluation:
        """The figures of everything added.

        Raises:
            ValueError: nothing was.
        """
        ensure_torchvision()  # torchmetrics imports torchvision where it is installed
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision

        if not sum(map(len, self._logits)):
            raise ValueError("evaluate: there are no images to score")
        logits, labels = torch.cat(self._logits), torch.cat(self._labels).long()
        predicted, positive = logits > 0, labels > 0
        precision, area, f1 = [], [], []
        recall: list[float | None] = []
        for k in range(self._classes):
            count = int(positive[:, k].sum())
            hits = int((predicted[:, k] & positive[:, k]).sum())
            recall.append(hits / count if count else None)
            if count:
                # sigmoid(logit) is 1.0 for many large logits in float32: ranks would be lost
                ranks = _ranks(logits[:, k])
                precision.append(binary_average_precision(ranks, labels[:, k]))
                f1.append(2 * hits / (count + int(predicted[:, k].sum())))
                if count < len(labels):
                    area.append(binary_auroc(ranks, labels[:, k]))
        return MultilabelEvaluation(
            images=len(labels),
            mean_ap=torch.stack(precision).mean().item() if precision else None,
            auroc=torch.stack(area).mean().item() if area else None,
            f1=sum(f1) / len(f1) if f1 else None,
            subset_accuracy=(predicted == positive).all(1).float().mean().item(),
            loss=nn.functional.binary_cross_entropy_with_logits(logits, labels.float()).item(),
            **self._sizes.figures(),
            recall=tuple(recall),
            counts=tuple(positive.sum(0).tolist()),
        )


def _ranks(
    scores: Tensor,  # [n]
) -> Tensor:
    """The scores' ranks in (0, 1], ties alike: torchmetrics takes them for probabilities."""
    values, which = scores.unique(return_inverse=True)
    ranks: Tensor = (which + 1).double() / len(values)
    return ranks
