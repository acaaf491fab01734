"""Reports of given images: each is decoded once, and what cannot be read is left out."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
from PIL import Image

from infodisent.explanations.prototypes import find_prototypes
from infodisent.report.publish import PAGE, report_images
from infodisent.training.checkpoint import Checkpoint

METRICS = {"backbone": "test_resnet", "rows": []}


@pytest.fixture
def trained(tiny, store):
    """What `open_run` gives of a run: the model with its classes, and its prototypes."""
    prototypes = find_prototypes(tiny.head, store, k=2, progress=False)
    return Checkpoint(tiny, store.classes, prototypes.transform, {}), prototypes


def test_each_image_is_decoded_once(tmp_path, image_folder, trained, monkeypatch):
    images = [tmp_path / f"{name}.png" for name in "abc"]  # none of them is a prototype's picture
    for image in images:
        shutil.copy(image_folder / "green" / "03.png", image)
    opened: Counter[str] = Counter()
    plain = Image.open

    def count(source, *args, **kwargs):
        opened[os.fspath(source)] += 1
        return plain(source, *args, **kwargs)

    monkeypatch.setattr(Image, "open", count)
    page, failures = report_images(
        *trained, images, tmp_path / "why", metrics=METRICS, progress=False
    )
    assert [opened[str(image)] for image in images] == [1, 1, 1]
    assert page == tmp_path / "why" / PAGE
    assert failures == []
    names = sorted(path.name for path in (tmp_path / "why" / "figures").iterdir())
    assert names == ["001-a.png", "002-b.png", "003-c.png"]


def test_unreadable_images_are_named_and_left_out(tmp_path, image_folder, trained):
    corrupt, lost = image_folder / "red" / "07.png", tmp_path / "lost.png"
    good = image_folder / "red" / "01.png"
    page, failures = report_images(
        *trained, [corrupt, good, lost], tmp_path / "why", metrics=METRICS, progress=False
    )
    assert [str(corrupt) in failures[0], str(lost) in failures[1], len(failures)] == [True, True, 2]
    text = page.read_text(encoding="utf-8")
    assert 'id="image-1"' in text
    assert 'id="image-2"' not in text
    assert [p.name for p in (tmp_path / "why" / "figures").iterdir()] == ["001-01.png"]


def test_nothing_is_written_where_no_image_can_be_read(tmp_path, image_folder, trained):
    corrupt = image_folder / "red" / "07.png"
    with pytest.raises(ValueError, match=r"no image can be read: .*07\.png"):
        report_images(*trained, [corrupt], tmp_path / "why", metrics=METRICS, progress=False)
    assert not (tmp_path / "why").exists()


def test_an_unknown_class_is_refused(tmp_path, image_folder, trained):
    with pytest.raises(ValueError, match="class is 'blue', the model knows green, red"):
        report_images(
            *trained,
            [image_folder / "red" / "01.png"],
            tmp_path / "why",
            metrics=METRICS,
            class_name="blue",
            progress=False,
        )
