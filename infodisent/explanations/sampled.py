"""Post-hoc explanations by asking the whole model often: captum's and grad-cam's, beside ours.

All take the classifier, images as the backbone is fed and one class for each, and give a map of
every image on the CPU, ``[B, rows, columns]`` float32, larger where a place counts more. What is
hidden becomes 0, the mean colour of normalised images. LIME, Kernel SHAP and occlusion hide whole
cells of the feature map's grid, not superpixels, so that all methods speak of the same places.

The extra ``posthoc`` brings captum, grad-cam and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.backbones.backbone import Backbone, evaluating
from infodisent.backbones.linear_head import linear_classifier
from infodisent.checks import check_positive
from infodisent.classifier import InfoDisentClassifier
from infodisent.layout import to_bpc

SAMPLES = 300
"""Masked pictures of LIME and of Kernel SHAP; lime's own default is 1000."""
STEPS = 32
"""Points of the path of integrated gradients."""
BATCH = 8
"""Masked pictures at a time: on a CPU, larger batches leave its caches and take longer."""
KERNEL_WIDTH = 0.25
"""Of LIME's weights, over the cosine distance from the whole picture: lime's own default."""


@contextmanager
def needs_posthoc() -> Iterator[None]:
    """Imports of the extra: a ModuleNotFoundError of the block gets the line that installs it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"this explanation needs {missing.name}: pip install 'infodisent[posthoc]'"
        ) from missing


def require_posthoc() -> None:
    """ModuleNotFoundError, with the line that installs it, unless the whole extra is there."""
    with needs_posthoc():
        import captum.attr
        import pytorch_grad_cam

        del captum, pytorch_grad_cam
        _check_solver()


def _check_solver() -> None:
    """captum solves with scikit-learn, whose import takes seconds: only where the rest is there."""
    import sklearn

    del sklearn


def lime(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    classes: Tensor,  # [B] int64
    *,
    samples: int = SAMPLES,
    batch_size: int = BATCH,
    seed: int = 0,
) -> Tensor:
    """LIME through captum: a ridge regression of the class's probability on which cells are shown.

    Ribeiro, Singh and Guestrin, KDD 2016. Each cell is shown with probability 1/2; a picture's
    weight is ``exp(-d² / (2 · 0.25²))``, d the cosine distance of its cells from all.

    Args:
        samples: masked pictures an image.
        batch_size: of them at a time.
        seed: of what is masked; the global generator is left alone.

    Raises:
        ModuleNotFoundError: the extra ``posthoc`` is not installed.
        ValueError: shapes differ, or `samples` is below 1.
    """
    with needs_posthoc():
        from captum._utils.models.linear_model import SkLearnRidge
        from captum.attr import Lime

        _check_solver()
    check_positive("lime", "samples", samples)

    def nearness(original: Tensor, masked: Tensor, shown: Tensor, **_: Any) -> float:
        distance = 1 - float(shown.float().mean()) ** 0.5
        return float(torch.exp(torch.tensor(-(distance**2) / (2 * KERNEL_WIDTH**2))))

    method = Lime(
        lambda x: model(x).softmax(1),
        interpretable_model=SkLearnRidge(alpha=1.0),
        similarity_func=nearness,
    )
    sampling = {"n_samples": samples, "perturbations_per_eval": batch_size}
    return _by_cells("lime", model, images, classes, seed, method, sampling)


def kernel_shap(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    classes: Tensor,  # [B] int64
    *,
    samples: int = SAMPLES,
    batch_size: int = BATCH,
    seed: int = 0,
) -> Tensor:
    """Kernel SHAP through captum: Shapley values of cells of the picture for the class's logit.

    Lundberg and Lee, NeurIPS 2017. Of the picture's cells, through the backbone, where
    `infodisent.explanations.posthoc.shapley_cells` has the exact ones of the last map's.
    Arguments and errors as in `lime`.
    """
    with needs_posthoc():
        from captum.attr import KernelShap

        _check_solver()
    check_positive("kernel_shap", "samples", samples)

    sampling = {"n_samples": samples, "perturbations_per_eval": batch_size}
    return _by_cells("kernel_shap", model, images, classes, seed, KernelShap(model), sampling)


def _by_cells(
    what: str,
    model: InfoDisentClassifier,
    images: Tensor,
    classes: Tensor,
    seed: int,
    method: Any,  # of captum, which masks cells
    sampling: dict[str, int],
) -> Tensor:
    """One number for every cell of the feature map's grid, an image at a time."""
    images = _placed(what, model, images, classes)
    grid = model.grid_size(images.shape[2:])
    mask = _cells(grid, images)
    found = []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for image, label in zip(images, classes.tolist(), strict=True):
            given = {"target": label, "feature_mask": mask, "baselines": 0, **sampling}
            values = method.attribute(image[None], **given)[:, 0]  # [1, H, W], the same in a cell
            found.append(nn.functional.adaptive_max_pool2d(values.float(), grid)[0].cpu())
    return torch.stack(found) if found else torch.zeros(0, *grid)


def _cells(grid: tuple[int, int], images: Tensor) -> Tensor:
    """The number of every pixel's cell, ``[1, 1, H, W]`` int64."""
    (rows, columns), (height, width) = grid, images.shape[2:]
    row = torch.div(torch.arange(height) * rows, height, rounding_mode="floor")
    column = torch.div(torch.arange(width) * columns, width, rounding_mode="floor")
    return (row[:, None] * columns + column)[None, None].to(images.device)


def occlusion(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    classes: Tensor,  # [B] int64
    *,
    batch_size: int = BATCH,
) -> Tensor:
    """Occlusion through captum: how the logit falls when a window hides a place, ``[B, H, W]``.

    Zeiler and Fergus, ECCV 2014. The window is two cells of the feature map wide and high, and
    moves by one. Arguments and errors as in `lime`.
    """
    with needs_posthoc():
        from captum.attr import Occlusion
    images = _placed("occlusion", model, images, classes)
    rows, columns = model.grid_size(images.shape[2:])
    step = max(1, images.shape[2] // rows), max(1, images.shape[3] // columns)
    window = min(2 * step[0], images.shape[2]), min(2 * step[1], images.shape[3])
    with evaluating(model), torch.no_grad():
        found = [
            Occlusion(model).attribute(
                image[None], (images.shape[1], *window), strides=(images.shape[1], *step),
                baselines=0, target=label, perturbations_per_eval=batch_size,
            )[:, 0]  # every colour has the window's whole fall
            for image, label in zip(images, classes.tolist(), strict=True)
        ]  # fmt: skip
    return torch.cat(found).float().cpu() if found else torch.zeros(0, *images.shape[2:])


def integrated_gradients(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    classes: Tensor,  # [B] int64
    *,
    steps: int = STEPS,
    batch_size: int = BATCH,
) -> Tensor:
    """Integrated gradients through captum, from the mean colour, ``[B, H, W]``; colours summed.

    Sundararajan, Taly and Yan, ICML 2017. Their sum is the logit less that of the empty picture,
    as far as `steps` points of the path allow. Other arguments and errors as in `lime`.
    """
    with needs_posthoc():
        from captum.attr import IntegratedGradients
    check_positive("integrated_gradients", "steps", steps)
    images = _placed("integrated_gradients", model, images, classes)
    if not len(images):
        return torch.zeros(0, *images.shape[2:])
    with evaluating(model), torch.enable_grad():
        found = IntegratedGradients(model).attribute(
            images, baselines=0, target=classes.to(images.device), n_steps=steps,
            internal_batch_size=max(batch_size, len(images)),
        )  # fmt: skip
    summed: Tensor = found.detach().sum(1).float().cpu()
    return summed


def original_gradcam(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    classes: Tensor | None = None,  # [B] int64
) -> Tensor:
    """Grad-CAM of the original head through grad-cam, as it scales it to 0 … 1: ``[B, H, W]``.

    Selvaraju et al., ICCV 2017, on the map that the original pools.

    Args:
        classes: of the original head; default: those that it predicts.

    Raises:
        ModuleNotFoundError: the extra ``posthoc`` is not installed.
        ValueError: the original has no classifier, or reads only its class token, so that its map
            has no gradient; or shapes differ.
    """
    if model.backbone.plan.pool == "token":
        raise ValueError(
            "original_gradcam: the original classifies its class token after the last layer, so "
            "its logits have no gradient at the map's pixels"
        )
    with needs_posthoc():
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    images = _placed("original_gradcam", model, images, classes)
    if not len(images):
        return torch.zeros(0, *images.shape[2:])
    original = _Original(model.backbone)
    grid = model.grid_size(images.shape[2:])

    def to_grid(raw: Tensor) -> Tensor:
        rows = to_bpc(raw, model.input_fmt, model.num_prefix_tokens)
        shaped: Tensor = rows.mT.unflatten(2, grid)
        return shaped

    with evaluating(model), torch.enable_grad():
        if classes is None:
            with torch.no_grad():
                classes = original(images).argmax(1)
        chosen = [ClassifierOutputTarget(int(label)) for label in classes]
        with GradCAM(original, [original.map], reshape_transform=to_grid) as cam:
            found = cam(images.detach().clone().requires_grad_(), chosen)
    scaled: Tensor = torch.from_numpy(found).float()
    return scaled


class _Original(nn.Module):
    """The backbone with its own head, and its map as a layer that hooks find."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.map = backbone, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.backbone.classify(self.map(self.backbone.raw(x)))
        return logits


@torch.no_grad()
def original_cam(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    classes: Tensor | None = None,  # [B] int64
) -> Tensor:
    """Grad-CAM of an original head that is linear in the mean of its map, in closed form.

    ``ReLU(map · W[k]) / P``, Zhou et al.'s CAM (CVPR 2016): no backward pass, no library; ``[B, gh,
    gw]``. `classes` as in `original_gradcam`.

    Raises:
        ValueError: the original's head does more, or shapes differ.
    """
    images = _placed("original_cam", model, images, classes)
    known = linear_classifier(model.backbone)
    if known is None:
        raise ValueError(
            "original_cam: the original head is not linear in the mean of its map; "
            "original_gradcam needs no such form"
        )
    weight, bias = known
    with evaluating(model):
        maps = to_bpc(model.backbone(images), model.input_fmt, model.num_prefix_tokens)
    if classes is None:
        classes = (maps.mean(1) @ weight.mT + bias).argmax(1)
    cells = torch.einsum("bpc,bc->bp", maps, weight[classes.to(weight.device)]) / maps.shape[1]
    shaped: Tensor = cells.clamp_min(0).unflatten(1, model.grid_size(images.shape[2:]))
    return shaped.float().cpu()


def _placed(
    what: str, model: InfoDisentClassifier, images: Tensor, classes: Tensor | None
) -> Tensor:
    """The images where the model is; ValueError where there is not one class for each."""
    if images.ndim != 4 or (classes is not None and classes.shape != images.shape[:1]):
        given = "" if classes is None else f" and classes {tuple(classes.shape)}"
        raise ValueError(
            f"{what}: images is {tuple(images.shape)}{given}, must be (images, 3, H, W) and one "
            "class an image"
        )
    like = next(model.parameters())
    return images.to(like.device, like.dtype)
