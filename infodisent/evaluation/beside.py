"""One decision by every method beside each other: maps, what they are worth, what they cost.

    beside = explain_beside(model, "photo.jpg")
    beside.plot(), beside.to_dict()

Closed forms read the map once; LIME, Kernel SHAP, occlusion and integrated gradients, of the extra
``posthoc``, ask the whole model hundreds of times. All are judged alike: how the probability of the
class falls and rises as places are deleted and inserted in their order, through the whole model,
and, where the object's mask is known, whether they lie on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from infodisent.backbones.backbone import evaluating
from infodisent.backbones.geometry import crop_geometry
from infodisent.backbones.preprocess import to_picture, transform_from
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.annotations import mask_in_input
from infodisent.data.pictures import ImageSource, load_picture
from infodisent.evaluation import beside_drawing
from infodisent.evaluation.faithfulness import pixel_curves
from infodisent.evaluation.images import maps_of
from infodisent.evaluation.localisation import LOCALISATION
from infodisent.explanations import posthoc, sampled
from infodisent.explanations.request import Loaded, make_request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 32
"""Of deletion and insertion over pixels."""
WholeModel = Callable[..., Tensor]
"""``(model, images [B, 3, H, W], classes [B]) -> [B, rows, columns]``."""


def _closed(explainer: posthoc.Explainer) -> WholeModel:
    def explain(model: InfoDisentClassifier, images: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(model):
            maps = maps_of(model, images)
        found = explainer(model.head, maps, classes.to(maps.device))
        shaped: Tensor = found.unflatten(1, model.grid_size(images.shape[2:]))
        return shaped.float().cpu()

    return explain


def _original(explain: WholeModel) -> WholeModel:
    def of_its_own_class(model: InfoDisentClassifier, images: Tensor, classes: Tensor) -> Tensor:
        del classes  # the original's classes are others
        return explain(model, images)

    return of_its_own_class


CLOSED: dict[str, tuple[str, WholeModel]] = {
    "evidence": ("evidence, as shown here", _closed(posthoc.evidence)),
    "shapley": ("Shapley values of cells, exact", _closed(posthoc.shapley_cells)),
    "gradcam": ("Grad-CAM, this head", _closed(posthoc.gradcam)),
}
"""Closed forms: title and function by name."""
SAMPLED: dict[str, tuple[str, WholeModel]] = {
    "original_gradcam": (
        "Grad-CAM, original head", _original(sampled.original_gradcam)
    ),
    "lime": ("LIME (captum)", sampled.lime),
    "kernel_shap": ("Kernel SHAP (captum)", sampled.kernel_shap),
    "occlusion": ("occlusion (captum)", sampled.occlusion),
    "integrated_gradients": ("integrated gradients (captum)", sampled.integrated_gradients),
}  # fmt: skip
"""What needs the extra ``posthoc``, in the same way."""
CONTROL: dict[str, tuple[str, WholeModel]] = {
    "random": ("random", _closed(posthoc.random_cells)),
}
"""What every method must be better than."""
BESIDE = CLOSED | SAMPLED | CONTROL


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What one method says of one image, and what that is worth.

    Attributes:
        name, title: of the method.
        saliency: ``[H, W]`` float32 in the picture's pixels, larger where a place counts more.
        seconds: that it took.
        deletion, insertion: areas under the curves; lower and higher are better.
        deletion_curve, insertion_curve: probability of the class, ``[steps + 1]``.
        localisation: by metric, see `infodisent.evaluation.localisation`; empty without a mask.
    """

    name: str
    title: str
    saliency: Tensor = field(repr=False)
    seconds: float
    deletion: float
    insertion: float
    deletion_curve: Tensor = field(repr=False)
    insertion_curve: Tensor = field(repr=False)
    localisation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Beside:
    """One image explained by several methods.

    Attributes:
        path: of the image; "" where it came from memory.
        picture: what the network sees.
        class_index, class_name: the explained class; probability: its own.
        methods: results, in order.
        mask: of the object, ``[H, W]`` bool, or None.
        notes: methods that were left out, and why.
    """

    path: str
    picture: Image.Image = field(repr=False)
    class_index: int
    class_name: str
    probability: float
    methods: tuple[MethodResult, ...]
    mask: Tensor | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures and maps as JSON-able values."""
        keys = ("name", "title", "seconds", "deletion", "insertion", "localisation")
        return {
            "path": self.path,
            "class_index": self.class_index,
            "class_name": self.class_name,
            "probability": self.probability,
            "methods": [{key: getattr(method, key) for key in keys} for method in self.methods],
            "notes": list(self.notes),
        }

    def plot(self) -> Figure:
        """A matplotlib figure: every method's map with its figures, and both curves."""
        return beside_drawing.figure(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return beside_drawing.as_html(self)


def explain_beside(
    model: InfoDisentClassifier | Loaded,
    image: ImageSource,
    *,
    methods: Sequence[str] | str = "all",
    classes: Sequence[str] | None = None,
    class_index: int | None = None,
    class_name: str | None = None,
    mask: Tensor | None = None,
    samples: int = sampled.SAMPLES,
    steps: int = STEPS,
    transform: dict[str, Any] | None = None,
    task: str | None = None,
) -> Beside:
    """Explain one decision by several methods, and judge them.

    Args:
        model, image, classes, class_index, class_name, transform, task: as `infodisent.explain`
            has them.
        methods: names of `BESIDE`, "all", or "closed" for those that need no further package.
        mask: pixels of the object in the photograph, ``[H, W]`` bool, if they are known.
        samples: masked pictures of LIME and of Kernel SHAP.
        steps: of deletion and insertion over pixels.

    Raises:
        ModuleNotFoundError: a method needs the extra ``posthoc``; the message has the pip line.
        ValueError: an unknown method, or an argument is out of range.
    """
    chosen = chosen_methods(methods)
    request = make_request(
        model, classes, class_index, 1, 0, transform, task, None, None, class_name=class_name
    )
    classifier = request.model
    picture = load_picture(image, **request.options)
    x = transform_from(request.config)(picture.image)[None]
    seen = None
    if mask is not None:
        geometry = crop_geometry(request.config, picture.image.size)
        seen = mask_in_input(mask.bool(), geometry)
    independent = request.task == "multilabel" or classifier.num_classes == 1
    like = next(classifier.parameters())
    with torch.no_grad(), evaluating(classifier):
        logits = classifier(x.to(like.device, like.dtype)).float().cpu()
    label = logits.argmax(1) if request.class_index is None else torch.tensor([request.class_index])
    chance = classifier.head.probabilities(logits, independent)[0, label[0]]
    results, notes = [], []
    for name in chosen:
        title, explain = BESIDE[name]
        options = {"samples": samples} if name in ("lime", "kernel_shap") else {}
        start = time.perf_counter()
        try:
            found = explain(classifier, x, label, **options)
        except ValueError as reason:  # with which closed forms refuse a head
            notes.append(str(reason))
            continue
        seconds = time.perf_counter() - start
        results.append(
            _judged(classifier, x, label, name, title, found, seconds, steps, independent, seen)
        )
    return Beside(
        path=picture.path,
        picture=to_picture(x[0], request.config),
        class_index=int(label[0]),
        class_name=request.names[int(label[0])],
        probability=float(chance),
        methods=tuple(results),
        mask=seen,
        notes=tuple(notes),
    )


def chosen_methods(methods: Sequence[str] | str) -> tuple[str, ...]:
    """Names of `BESIDE`, each once, of "all", "closed", names, or a list with commas.

    Raises:
        ModuleNotFoundError: one needs the extra ``posthoc``, which is not installed.
        ValueError: none, or one that is not known.
    """
    named = methods.split(",") if isinstance(methods, str) else list(methods)
    known = {"all": list(BESIDE), "closed": [*CLOSED, *CONTROL]}
    names = list(
        dict.fromkeys(
            name for given in named for name in known.get(given.strip(), [given.strip()]) if name
        )
    )
    unknown = [name for name in names if name not in BESIDE]
    if unknown or not names:
        raise ValueError(
            f"beside: methods is {methods!r}, allowed are all, closed and {', '.join(BESIDE)}"
        )
    if any(name in SAMPLED for name in names):
        sampled.require_posthoc()
    return tuple(names)


def _judged(
    model: InfoDisentClassifier,
    image: Tensor,  # [1, 3, H, W]
    label: Tensor,  # [1] int64
    name: str,
    title: str,
    found: Tensor,  # [1, rows, columns]
    seconds: float,
    steps: int,
    independent: bool,
    mask: Tensor | None,  # [H, W] bool
) -> MethodResult:
    size = image.shape[2:]
    large = nn.functional.interpolate(found[:, None], size, mode="bilinear")[:, 0]
    curves = pixel_curves(model, image, large, label, steps=steps, independent=independent)
    where: dict[str, float] = {}
    if mask is not None:
        values = {key: float(of(large, mask[None])) for key, of in LOCALISATION.items()}
        where = {key: value for key, value in values.items() if not math.isnan(value)}
    return MethodResult(
        name, title, large[0], seconds, float(curves.deletion), float(curves.insertion),
        curves.deletion_curve[0], curves.insertion_curve[0], where,
    )  # fmt: skip
