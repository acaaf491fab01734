"""What metrics are given is checked: the error names the function, the argument and what may be."""

from __future__ import annotations

import pytest
import torch

from infodisent import attach
from infodisent.evaluation.accuracy import score
from infodisent.evaluation.disentanglement import channel_purity, complexity, spatial_entropy
from infodisent.evaluation.faithfulness import cell_curves, pixel_curves
from infodisent.evaluation.intervals import bootstrap, bootstrap_of, bootstrap_runs
from infodisent.evaluation.localisation import LOCALISATION
from infodisent.evaluation.misalignment import misalignment
from infodisent.evaluation.parts import part_consistency, part_purity, part_stability
from infodisent.evaluation.sizes import active_size, pipnet_size, sufficient_size
from infodisent.evaluation.stability import (
    head_randomisation,
    model_randomisation,
    noise_stability,
    rank_correlation,
)
from infodisent.explanations.posthoc import EXPLAINERS

NAN = float("nan")
LABELS = torch.tensor([0, 1])
GOOD = {
    "images": torch.ones(2, 3, 32, 32),
    "labels": LABELS,
    "classes": LABELS,
    "keypoints": torch.ones(2, 5, 2),
    "visible": torch.ones(2, 5, dtype=torch.bool),
    "maps": torch.ones(2, 16, 96),
    "pooled": torch.ones(2, 96),
    "explainer": EXPLAINERS["evidence"],
}
ARGUMENTS = {
    misalignment: ("model", "images", "labels"),
    part_consistency: ("model", "images", "labels", "keypoints", "visible"),
    part_stability: ("model", "images", "labels", "keypoints", "visible"),
    part_purity: ("model", "images", "keypoints", "visible"),
    noise_stability: ("model", "images"),
    model_randomisation: ("model", "images", "classes", "explainer"),
    head_randomisation: ("head", "maps", "classes", "explainer"),
    pipnet_size: ("head", "pooled", "classes"),
    active_size: ("head", "pooled"),
    sufficient_size: ("head", "pooled"),
    channel_purity: ("head", "maps"),
    spatial_entropy: ("head", "maps"),
    cell_curves: ("head", "maps", "saliency", "classes"),
    pixel_curves: ("model", "images", "saliency", "classes"),
}
BAD = {
    "images": [
        (torch.ones(3, 32, 32), r"is \(3, 32, 32\), must be \(images, 3, rows, columns\)"),
        (torch.ones(2, 1, 32, 32), r"must be \(images, 3, rows, columns\)"),
        (torch.full((2, 3, 32, 32), NAN), "holds NaN or Inf"),
        (torch.ones(2, 3, 32, 32, dtype=torch.uint8), "is torch.uint8, must be floating-point"),
        ([1], "is a list, must be a tensor"),
    ],
    "labels": [
        (torch.tensor([0, 3]), "are 0 … 3, allowed are 0 … 2"),
        (torch.tensor([-1, 0]), "are -1 … 0, allowed are 0 … 2"),
        (torch.tensor([0, 1, 2]), r"is \(3,\), must be \(2,\)"),
        (LABELS[:, None], r"is \(2, 1\), must be \(2,\)"),
        (LABELS.float(), "is torch.float32, must be int64"),
        (LABELS > 0, "is torch.bool, must be int64"),
        ([0, 1], "is a list, must be a tensor"),
    ],
    "keypoints": [
        (torch.ones(2, 5, 3), r"is \(2, 5, 3\), must be \(2, parts, 2\)"),
        (torch.full((2, 5, 2), NAN), "of visible parts hold NaN"),
    ],
    "visible": [
        (torch.ones(2, 4, dtype=torch.bool), r"is \(2, 4\), must be \(2, 5\)"),
        (torch.ones(2, 5), "is torch.float32, must be bool"),
    ],
    "maps": [
        (torch.ones(2, 16, 5), r"is \(2, 16, 5\), must be \(images, pixels, 96\)"),
        (torch.ones(16, 96), r"must be \(images, pixels, 96\)"),
        (torch.full((2, 16, 96), NAN), "holds NaN or Inf"),
    ],
    "pooled": [
        (torch.ones(2, 5), r"is \(2, 5\), must be \(images, 96\)"),
        (torch.ones(96), r"is \(96,\), must be \(images, 96\)"),
        (torch.full((2, 96), NAN), "holds NaN or Inf"),
    ],
    "saliency": [
        (torch.ones(3), r"is \(3,\), must be \(2, "),
        (torch.full((2, 16), NAN), "NaN|must be"),
    ],
}
BAD["classes"] = BAD["labels"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return attach("test_resnet", 3).eval()


@pytest.mark.parametrize("metric", ARGUMENTS, ids=lambda metric: metric.__name__)
def test_tensors(metric, model):
    saliency = torch.ones(2, 4, 4) if metric is pixel_curves else torch.ones(2, 16)
    good = GOOD | {"model": model, "head": model.head, "saliency": saliency}
    for name in ARGUMENTS[metric]:
        for value, words in BAD.get(name, []):
            given = [value if other == name else good[other] for other in ARGUMENTS[metric]]
            if metric is channel_purity:
                given[1] = [given[1]]
            with pytest.raises(
                (ValueError, TypeError), match=f"^{metric.__name__}: {name} .*{words}"
            ):
                metric(*given)


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (misalignment, {"own": 0, "batch_size": -1, "iterations": 1.5}),
        (part_consistency, {"own": -1, "batch_size": 0, "half": -1.0}),
        (part_stability, {"own": 0, "batch_size": 0, "half": NAN, "std": -1.0, "clip": NAN}),
        (part_purity, {"count": 0, "batch_size": 0, "patch": -1.0}),
        (noise_stability, {"units": 0, "batch_size": 0, "std": NAN, "clip": -1.0}),
    ],
)
def test_numbers(metric, options, model):
    given = [model if name == "model" else GOOD[name] for name in ARGUMENTS[metric]]
    for name, value in options.items():
        with pytest.raises((ValueError, TypeError), match=f"^{metric.__name__}: {name} is {value}"):
            metric(*given, **{name: value})


def test_intervals():
    for draws, level, words in (
        (1.5, 0.9, "draws is 1.5"),
        (0, 0.9, "draws"),
        (9, 2, "level is 2"),
    ):
        options = {"draws": draws, "level": level}
        with pytest.raises(ValueError, match=f"^bootstrap: {words}"):
            bootstrap(torch.ones(3), **options)
        with pytest.raises(ValueError, match=f"^bootstrap_runs: {words}"):
            bootstrap_runs([torch.ones(3)], **options)
        with pytest.raises(ValueError, match=f"^bootstrap_of: {words}"):
            bootstrap_of(lambda at: 1.0, 3, **options)
    with pytest.raises(ValueError, match="images is -3, must be an int >= 0"):
        bootstrap_of(lambda at: 1.0, -3)
    with pytest.raises(TypeError, match="values is a list, must be a tensor"):
        bootstrap([1.0])


def test_tables():
    with pytest.raises(ValueError, match=r"score: logits is \(4,\), must be \(images, classes\)"):
        score(torch.ones(4), LABELS)
    with pytest.raises(ValueError, match="score: labels are 0 … 2, allowed are 0 … 1"):
        score(torch.ones(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"complexity: saliency is \(3,\)"):
        complexity(torch.ones(3))
    with pytest.raises(ValueError, match=r"rank_correlation: b is \(2, 4\), must be \(2, 3\)"):
        rank_correlation(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.parametrize("metric", LOCALISATION.values(), ids=lambda metric: metric.__name__)
def test_attributions_that_are_no_numbers_have_no_place(metric):
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    saliency = torch.arange(32.0).view(2, 4, 4)
    saliency[0, 3, 3] = NAN
    assert metric(saliency, mask).isnan().tolist() == [True, False]
    with pytest.raises(TypeError, match=f"{metric.__name__}: mask is torch.float32, must be bool"):
        metric(saliency, mask.float())
