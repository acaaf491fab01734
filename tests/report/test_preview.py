"""The picture that comes while a head is still training."""

from __future__ import annotations

import pytest
import torch

from infodisent.data.images import scan_folder
from infodisent.report.preview import EPOCH, Preview
from infodisent.training.fit import FitConfig
from infodisent.training.run import fit


@pytest.mark.parametrize("epochs", [EPOCH - 1, EPOCH + 2])
def test_it_comes_once_and_changes_nothing(tmp_path, image_folder, tiny, epochs):
    images, said = scan_folder(image_folder), []
    config = FitConfig(epochs=epochs, batch_size=8)
    options = {"compare_identity": False, "probe": False, "progress": False}
    fit(tiny, images, tmp_path / "plain", config, **options)
    alone = {name: value.clone() for name, value in tiny.head.state_dict().items()}
    preview = Preview(tiny, images, tmp_path / "seen", lambda *found: said.append(found))
    fit(tiny, images, tmp_path / "seen", config, callbacks=[preview], **options)
    assert all(torch.equal(value, alone[name]) for name, value in tiny.head.state_dict().items())
    assert said == ([(preview.path, EPOCH)] if epochs >= EPOCH else [])
    assert preview.path.is_file() == bool(said)


def test_images_that_are_gone_are_left_out(tmp_path, image_folder, tiny):
    images = scan_folder(image_folder)
    for item in images.items:
        if item.split == "val" and item.label == len(images.classes) - 1:
            (image_folder / item.path).unlink()
    preview = Preview(tiny, images, tmp_path, lambda *found: pytest.fail("there is no picture"))
    preview(EPOCH, {})
