"""Reports of a run's own images: which, where they are now, what is wrong, several labels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from infodisent.explanations.local import explain
from infodisent.report import publish, sheet
from infodisent.report.figure import explanation_figure
from infodisent.report.pictures import Pictures
from infodisent.report.publish import draw_prototypes, report_held_out, report_run, report_sources
from infodisent.training.run import METRICS, open_run


@pytest.fixture(autouse=True)
def _quick_figures(monkeypatch):
    """What figures show is tested elsewhere; here their files count."""

    def save(figure, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(publish, "explanation_figure", lambda *arguments, **options: None)
    monkeypatch.setattr(publish, "save_figure", save)
    monkeypatch.setattr(sheet, "save_figure", save)


def figures(folder):
    return sorted(path.name for path in (folder / "figures").iterdir())


def verdicts(page):
    return re.findall(r'class="item" .*?data-verdict="(\w+)"', page.read_text("utf-8"))


def test_held_out_images_have_their_class(run_folder, tmp_path):
    page = report_held_out(run_folder, 4, out=tmp_path / "why", progress=False)
    assert len(figures(tmp_path / "why")) == len(verdicts(page)) == 4
    assert set(verdicts(page)) <= {"right", "wrong"}
    everything = report_held_out(run_folder, 99, out=tmp_path / "all", progress=False)
    assert len(verdicts(everything)) == open_run(run_folder)[2].store.splits.count("val")


def test_wrong_only(run_folder, tmp_path):
    everything = report_held_out(run_folder, 99, out=tmp_path / "all", progress=False)
    wrong = report_held_out(run_folder, 99, out=tmp_path / "wrong", wrong_only=True, progress=False)
    count = verdicts(everything).count("wrong")
    assert count > 0
    assert verdicts(wrong) == ["wrong"] * count


def test_wrong_only_of_folders(run_folder, image_folder, tmp_path):
    options = {"out": tmp_path / "why", "progress": False}
    page, failures = report_sources(run_folder, [image_folder], **options)
    count = verdicts(page).count("wrong")
    assert 0 < count < len(verdicts(page)) == 23
    page, again = report_sources(run_folder, [image_folder], wrong_only=True, **options)
    assert verdicts(page) == ["wrong"] * count
    assert failures == again
    assert "07.png" in failures[0]
    lone = tmp_path / "lone.png"
    shutil.copy(image_folder / "red" / "01.png", lone)
    with pytest.raises(ValueError, match=r"are called as the model's classes \(green"):
        report_sources(run_folder, [lone], wrong_only=True, **options)


def test_images_of_one_name_get_figures_of_their_own(run_folder, image_folder, tmp_path):
    twins = [image_folder / "red" / "01.png", image_folder / "green" / "01.png"]
    report_sources(run_folder, twins, out=tmp_path / "why", progress=False)
    assert figures(tmp_path / "why") == ["001-01.png", "002-01.png"]


def test_a_limit_is_said(run_folder, image_folder, tmp_path, capsys):
    page, _ = report_sources(run_folder, [image_folder], out=tmp_path / "why", limit=3)
    assert len(verdicts(page)) == 3
    assert "3 of 24 images are explained; --limit 24 for all" in capsys.readouterr().out


def test_moved_images_are_found_again(run_folder, image_folder, tmp_path, capsys):
    now = tmp_path / "now here"
    image_folder.rename(now)
    _, _, run = open_run(run_folder)
    with pytest.raises(FileNotFoundError, match=r"none of the 6 held-out images .*--images-root"):
        report_run(run, count=2, progress=False)
    page = report_run(run, count=2, images_root=now, progress=False)
    assert len(verdicts(page)) == 2
    assert "file is missing" not in page.read_text("utf-8")
    capsys.readouterr()
    lost, _ = report_sources(run_folder, [now / "red" / "01.png"], out=tmp_path / "why")
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"(\d+) of \1 prototype pictures are lost .* pass --images-root", printed)
    assert "file is missing" in lost.read_text("utf-8")
    with pytest.raises(NotADirectoryError, match="images_root is 'nowhere'"):
        report_held_out(run_folder, images_root="nowhere", progress=False)
    with pytest.raises(FileNotFoundError, match="none of the run's images is there"):
        report_held_out(run_folder, images_root=tmp_path, progress=False)


def test_a_few_lost_images_are_left_out(run_folder, tmp_path, capsys):
    _, _, run = open_run(run_folder)
    held_out = [run.store.files[i] for i in run.store.indices("val").tolist()]
    for path in held_out[:-2]:
        run_folder.joinpath(path).unlink()
    page = report_held_out(run_folder, 99, out=tmp_path / "why")
    assert len(verdicts(page)) == 2
    assert f"{len(held_out) - 2} held-out image(s) are lost" in capsys.readouterr().out


def test_sheets_do_not_overwrite_each_other(run_folder, tmp_path):
    made = [
        draw_prototypes(run_folder, *arguments, progress=False).name
        for arguments in ((None,), ("3,5,3",), ("5",), ("5", 2), (",".join(map(str, range(60))), 1))
    ]
    assert made[:3] == ["prototypes.png", "prototypes-3-5.png", "prototypes-5.png"]
    assert made[3] == "prototypes-5-k2.png"
    assert len(set(made)) == len(made)
    assert max(map(len, made)) < 120
    with pytest.raises(ValueError, match=r"must end in \.png"):
        draw_prototypes(run_folder, "5", out=tmp_path / "x.pdf", progress=False)
    assert draw_prototypes(run_folder, "5", out=tmp_path, progress=False).parent == tmp_path
    with pytest.raises(ValueError, match="channel is 999, allowed are 0"):
        draw_prototypes(run_folder, "999", progress=False)


def test_an_unknown_class_names_close_ones(run_folder, image_folder, tmp_path):
    with pytest.raises(ValueError, match=r"class is 'Gren', .* did you mean 'green'\?"):
        report_sources(run_folder, [image_folder], class_name="Gren", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written_is_refused_first(run_folder, image_folder):
    blocked = image_folder / "red" / "01.png" / "deeper"
    for report in (
        lambda: report_held_out(run_folder, out=blocked, progress=False),
        lambda: report_sources(run_folder, [image_folder], out=blocked, progress=False),
        lambda: draw_prototypes(run_folder, out=blocked / "x.png", progress=False),
    ):
        with pytest.raises(NotADirectoryError, match=r"01\.png is a file, expected a folder"):
            report()


def test_several_labels(labels_run, image_folder, tmp_path):
    page = report_held_out(labels_run, 3, out=tmp_path / "why", progress=False)
    text = page.read_text("utf-8")
    assert verdicts(page) == ["unknown"] * 3
    assert text.count("· label<") == 3
    assert "Labels of 50 % or more: " in text
    assert "Most probable labels" in text
    wrong = report_held_out(labels_run, 9, wrong_only=True, out=tmp_path / "w", progress=False)
    assert wrong is not None
    loaded, prototypes, _ = open_run(labels_run)
    assert prototypes.of(0, 1)[0].label_name in {"green, small, or so", "red", "no label"}
    e = explain(
        loaded.model, image_folder / "red" / "01.png", classes=loaded.classes, task="multilabel"
    )
    assert e.probabilities.tolist() == pytest.approx(e.logits.sigmoid().tolist())
    written = " ".join(t.get_text() for t in explanation_figure(e, prototypes).figure.texts)
    assert f"{e.class_name}: {float(e.probabilities[e.class_index]):.1%}" in written
    assert f"labels of 50 % or more: {', '.join(e.predicted_names) or 'none'}" in written


def test_large_photographs_are_decoded_small(tmp_path, tiny, monkeypatch):
    from infodisent.backbones.preprocess import transform_config

    path = tmp_path / "large.jpg"
    picture = Image.new("RGB", (2400, 1600), (200, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    picture.paste((20, 20, 220), (0, 0, 1200, 1600))
    picture.save(path, exif=exif)
    sizes = []
    plain = Image.Image.convert

    def convert(self, *arguments, **options):
        sizes.append(self.size)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "convert", convert)
    thumbnail = Pictures(transform_config(tiny), 160).get(path)
    assert thumbnail.missing == ""
    assert max(sizes[0]) <= 1200
    upper, lower = (thumbnail.image.getpixel((80, y)) for y in (10, 140))
    assert upper[2] > 180 > lower[2]  # upright: the left half is the upper one


def test_the_page_says_what_is_lost(run_folder, image_folder, tmp_path):
    store = open_run(run_folder)[2].store
    held_out = [store.files[i] for i in store.indices("val").tolist()]
    Path(held_out[0]).unlink()
    Path(held_out[1]).write_bytes(b"")
    count = len(held_out) - 2
    page = report_held_out(run_folder, 99, out=tmp_path / "why", progress=False)
    text = page.read_text("utf-8")
    assert f"These are {count} of all {count + 2} held-out images. 2 more are lost or" in text


def test_whose_photographs_they_are(run_folder, tmp_path):
    """Known packages by their folder, unless somebody says; else nothing."""
    path = run_folder / METRICS
    known = json.loads(path.read_text())
    page = report_held_out(run_folder, 1, progress=False)
    assert "Photographs:" not in page.read_text("utf-8")
    for root in ("/x/site-packages/elpv_dataset/data", "C:\\x\\elpv_dataset\\data"):
        path.write_text(json.dumps(known | {"images": known["images"] | {"root": root}}))
        footer = report_held_out(run_folder, 1, progress=False).read_text("utf-8")
        footer = footer.partition("<footer>")[2].partition("</footer>")[0]
        assert "Photographs: solar cells by Deitsch et al." in footer
        assert "CC BY-NC-SA 4.0." in footer
    page = report_held_out(run_folder, 1, attribution="cells & <me>, CC0.", progress=False)
    footer = page.read_text("utf-8").partition("<footer>")[2].partition("</footer>")[0]
    assert "Photographs: cells &amp; &lt;me&gt;, CC0." in footer
    assert "Deitsch" not in footer
