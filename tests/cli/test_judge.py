"""`infodisent judge`: what it writes, prints, draws, and does not do twice."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from infodisent.cli.app import app
from infodisent.data.annotation_formats import read_annotations
from infodisent.evaluation import judgement
from infodisent.evaluation.accuracy import evaluate_head
from infodisent.evaluation.images import maps_of
from infodisent.evaluation.judgement import MEASURES
from infodisent.evaluation.localisation import mass_accuracy
from infodisent.evaluation.misalignment import misalignment
from infodisent.evaluation.parts import part_consistency, part_purity
from infodisent.explanations.posthoc import EXPLAINERS
from infodisent.report import judged
from infodisent.report.annotated import AnnotatedImages
from infodisent.report.judged import (
    by_measure,
    comparison_figure,
    judge_run,
    read_judgement,
    unlike_images,
)
from infodisent.report.pooled import pooled, read_images, seed_groups
from infodisent.training.folder import WRITTEN
from infodisent.training.run import open_run

ANNOTATED = {"consistency", "part_stability", "part_purity", "pointing", "mass", "rank"}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(judgement, "PIXEL_STEPS", 2)
    fast = functools.partial(misalignment, iterations=2, step=0.2)
    monkeypatch.setattr(judgement, "misalignment", fast)


@pytest.fixture
def result(run_folder):
    return judge_run(run_folder, pictures=2, progress=False)


def test_figures_are_those_of_the_run(run_folder, result):
    rows = by_measure(result)
    loaded, prototypes, run = open_run(run_folder)
    store, head = run.store, loaded.model.head.eval()
    test = store.indices("val")
    evaluation = evaluate_head(head, store, test)
    assert rows["accuracy", ""]["mean"] == pytest.approx(evaluation.accuracy)
    assert rows["accuracy", ""]["images"] == len(test) == result["judged_images"]["held out"]
    weights = head.class_weights()
    assert rows["global_size", ""]["mean"] == int((weights > 1e-3).any(0).sum())
    patches = {
        (int(i), int(p))
        for images, pixels in (
            (prototypes.pos_image[0], prototypes.pos_index[0]),
            (prototypes.neg_image[0], prototypes.neg_index[0]),
        )
        for i, p in zip(images, pixels, strict=True)
        if i >= 0
    }
    count = sum(int((t[0] >= 0).sum()) for t in (prototypes.pos_image, prototypes.neg_image))
    assert rows["duplicates", ""]["mean"] == pytest.approx((count - len(patches)) / count)
    assert {key[0] for key in rows} == set(MEASURES) - ANNOTATED
    for row in rows.values():
        if row["low"] is not None:
            assert row["low"] <= row["mean"] <= row["high"]
    assert rows["deletion", "shapley"]["mean"] < rows["deletion", "random"]["mean"]
    assert rows["pixel_deletion", "evidence"]["images"] == 2
    assert rows["plc", "pgd"]["images"] <= 2


def test_what_is_there_is_read_back_until_something_changes(run_folder, result, monkeypatch):
    assert read_judgement(run_folder) == result
    assert "judge.json" in WRITTEN  # fit --overwrite takes it away
    json.loads((run_folder / "judge.json").read_text(), parse_constant=pytest.fail)  # no NaN
    calls = []
    features = judged.judge_features
    monkeypatch.setattr(
        judged, "judge_features", lambda *a, **k: calls.append(1) or features(*a, **k)
    )
    assert judge_run(run_folder, pictures=2, progress=False) == result
    assert not calls
    assert judge_run(run_folder, pictures=2, again=True, progress=False) == result
    fewer = judge_run(run_folder, pictures=0, progress=False)
    assert len(calls) == 2
    assert not any(row["measure"].startswith("pixel") for row in fewer["rows"])
    model = run_folder / "model.safetensors"
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(ValueError, match="truncated"):  # another file: it is opened, not trusted
        judge_run(run_folder, pictures=0, progress=False)


def test_command_prints_one_run(run_folder):
    runner = CliRunner()
    done = runner.invoke(app, ["judge", str(run_folder), "--pictures", "1"])
    assert done.exit_code == 0, done.output
    texts = ("deletion AUC: shapley", "misalignment PAC: pgd", "faithfulness, pixels", "stored")
    for text in texts:
        assert text in done.output
    with pytest.raises(ValueError, match="given twice"):
        runner.invoke(app, ["judge", str(run_folder), str(run_folder)], catch_exceptions=False)


@pytest.mark.slow
def test_command_compares_runs_and_draws(tmp_path, run_folder, result):
    other = tmp_path / "b run"
    shutil.copytree(run_folder, other)  # with what was judged
    picture = tmp_path / "side.png"
    arguments = ["judge", "--compare", str(run_folder), str(other), "--pictures", "2"]
    done = CliRunner().invoke(app, [*arguments, "-o", str(picture)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "a run" in done.output
    assert "b run" in done.output
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300


@pytest.mark.parametrize("place", ["", "a file/x.png"])
def test_where_a_picture_cannot_be_is_said_before_the_work(tmp_path, monkeypatch, place):
    monkeypatch.setattr(judged, "judge_run", lambda *a, **k: pytest.fail("worked"))
    (tmp_path / "a file").touch()
    arguments = ["judge", "--compare", "no run", "-o", str(tmp_path / place)]
    with pytest.raises(
        (IsADirectoryError, NotADirectoryError), match=r"^judge: .*(a file|a folder)"
    ):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_runs_of_other_images_are_no_fair_comparison():
    def of(classes, images):
        return {"recipe": {"classes": classes, "images": images}}

    runs = {"a": of(["x", "y"], [5, 2]), "b": of(["x", "y"], [5, 2])}
    assert unlike_images(runs) == []
    runs |= {"c": of(["x", "z"], [5, 2]), "d": of(["x", "z"], [9, 2]), "old": {}}
    assert unlike_images(runs) == [
        "c has other classes than a: their figures are not of the same images",
        "d has other classes and images than a: their figures are not of the same images",
    ]


def test_numbers_of_a_panel_are_whole(result):
    """No 3.218 apart that is to be added to each."""
    row = {"measure": "entropy", "of": "", "images": 3}
    runs = {
        name: {"rows": [row | {"mean": mean, "low": mean - 2e-5, "high": mean + 2e-5}]}
        for name, mean in (("a", 3.21835), ("b", 3.2189))
    }
    figure = comparison_figure(runs)
    figure.canvas.draw()
    axis = figure.axes[0].xaxis
    assert axis.get_offset_text().get_text() == ""
    assert all(t.get_text().startswith("3.21") for t in axis.get_ticklabels())


def test_labels_have_no_misalignment_but_the_rest(labels_run):
    result = judge_run(labels_run, pictures=2, progress=False)
    measures = {row["measure"] for row in result["rows"]}
    assert {"deletion", "pixel_deletion", "same_places", "purity"} <= measures
    assert not {"accuracy", "plc"} & measures
    assert any("misalignment" in note for note in result["notes"])


def test_a_head_without_closed_form_is_judged_on_the_rest(run_folder, monkeypatch):
    head = type(open_run(run_folder)[0].model.head)
    plain = head.classify
    monkeypatch.setattr(head, "classify", lambda self, pooled: plain(self, pooled).exp())
    result = judge_run(run_folder, pictures=0, progress=False)
    rows = by_measure(result)
    assert ("deletion", "gradcam") in rows
    assert ("deletion", "shapley") not in rows
    assert ("sufficient", "") not in rows
    assert sum("no weighted sum of its channels" in note for note in result["notes"]) == 2


def test_pictures_that_are_gone(run_folder, image_folder):
    moved = image_folder.rename(image_folder.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"--images-root, or leave .* --pictures 0"):
        judge_run(run_folder, pictures=2, progress=False)
    there = judge_run(run_folder, pictures=2, images_root=moved, progress=False)
    assert by_measure(there)["same_places", ""]["images"] == 2


def test_arguments_and_damaged_files_are_named(run_folder):
    with pytest.raises(ValueError, match="pictures -1"):
        judge_run(run_folder, pictures=-1, progress=False)
    with pytest.raises(ValueError, match="no judgement"):
        comparison_figure({})
    (run_folder / "judge.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match=r"judge\.json does not hold"):
        read_judgement(run_folder)


def test_the_figure_shows_every_run_and_no_control(result):
    other = json.loads(json.dumps(result))
    other["rows"] = [row for row in other["rows"] if row["measure"] != "plc"]
    figure = comparison_figure({"one": result, "two": other})
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert "deletion AUC, shapley" in titles
    assert not any("random" in title for title in titles)
    panel = figure.axes[titles.index("accuracy")]
    marks = [line for line in panel.lines if line.get_marker() not in (None, "None", "")]
    assert [float(mark.get_xdata()[0]) for mark in marks] == [
        by_measure(result)["accuracy", ""]["mean"]
    ] * 2
    alone = figure.axes[titles.index("misalignment PLC, pgd")]
    mean = by_measure(result)["plc", "pgd"]["mean"]
    assert (len(alone.lines) == 0) == (mean is None or math.isnan(mean)) or len(alone.lines) == 2


def annotate(root, folder):
    """The images of `image_folder` as CUB's files have them: two parts, boxes, one mask."""
    files = sorted(p.relative_to(root) for p in root.rglob("*.png"))
    rows = {name: [] for name in ("images", "classes", "image_class_labels", "train_test_split")}
    rows |= {name: [] for name in ("bounding_boxes", "parts/parts", "parts/part_locs")}
    rows["classes"] = ["1 green", "2 red"]
    rows["parts/parts"] = ["1 left corner", "2 right corner"]
    for number, file in enumerate(files, 1):
        place = int(file.stem)
        rows["images"].append(f"{number} {file.as_posix()}")
        rows["image_class_labels"].append(f"{number} {1 + (file.parts[0] == 'red')}")
        rows["train_test_split"].append(f"{number} 1")
        rows["bounding_boxes"].append(f"{number} {10 + place} 10 10 10")
        rows["parts/part_locs"].append(f"{number} 1 {10 + place} 10 1")
        rows["parts/part_locs"].append(f"{number} 2 {20 + place} 20 {place % 2}")
    for name, lines in rows.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "images").symlink_to(root)
    return folder


def test_annotated_images_are_judged_on_parts_and_masks(tmp_path, run_folder, image_folder):
    known = annotate(image_folder, tmp_path / "annotated")
    arguments = ["judge", str(run_folder), "--pictures", "1", "--parts", f"cub:{known}"]
    arguments += ["--epsilon", "0.4", "--epsilon", "0.05"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "masks of objects:" in done.output
    assert "misalignment PAC: pgd, ε 0.05" in done.output
    rows = by_measure(read_judgement(run_folder))
    assert {key[0] for key in rows} == set(MEASURES)
    loaded, _, run = open_run(run_folder)
    store = run.store
    test = store.indices("val")
    batches = list(
        AnnotatedImages(
            read_annotations(f"cub:{known}"), [store.files[i] for i in test], store.labels[test],
            loaded.transform,
        )
    )  # fmt: skip
    columns = list(zip(*batches, strict=True))[:4]
    images, labels, keypoints, masks = (torch.cat(x) for x in columns)
    assert rows["consistency", ""]["images"] == len(images) == len(test)
    size = images.shape[-1]  # the whole photograph's middle: 48 columns, of which 40 are seen
    box = masks[0].nonzero().float()
    place = int(Path(store.files[int(test[0])]).stem)
    edge = (10 + place - 4) / 40 * size
    assert abs(float(box[:, 1].min()) - edge) <= 0.13 * size
    model, visible = loaded.model, ~keypoints.isnan().any(2)
    given = (model, images, labels, keypoints.nan_to_num(), visible)
    consistent = part_consistency(*given).nanmean()
    assert rows["consistency", ""]["mean"] == pytest.approx(float(consistent), abs=1e-6)
    pure = part_purity(model, images, *given[3:], groups=(0, 0)).nanmean()
    assert rows["part_purity", ""]["mean"] == pytest.approx(float(pure), abs=1e-6)
    with torch.no_grad():
        cells = EXPLAINERS["evidence"](model.head, maps_of(model, images), labels)
    grid = cells.unflatten(1, model.grid_size(images.shape[2:]))[:, None].float()
    large = torch.nn.functional.interpolate(grid, images.shape[2:], mode="bilinear")[:, 0]
    inside = mass_accuracy(large, masks).nanmean()
    assert rows["mass", "evidence"]["mean"] == pytest.approx(float(inside), abs=1e-4)
    (known / "images.txt").write_text("1 a/b.jpg\n")
    (known / "image_class_labels.txt").write_text("1 1\n")
    (known / "train_test_split.txt").write_text("1 0\n")
    for name in ("bounding_boxes", "parts/part_locs"):
        (known / f"{name}.txt").write_text("")
    with pytest.raises(ValueError, match=r"none of the \d+ images is annotated"):
        judge_run(run_folder, annotations=f"cub:{known}", pictures=0, progress=False)


def test_damaged_masks_leave_their_images_out(tmp_path, run_folder, image_folder):
    loaded, _, run = open_run(run_folder)
    files = [run.store.files[i] for i in run.store.indices("val").tolist()]
    for i, file in enumerate(files):
        mask = tmp_path / "masks" / Path(file).relative_to(image_folder)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (48, 40) if i != 2 else (40, 40), 255).save(mask)
        if i < 2:
            mask.write_bytes(mask.read_bytes()[: 40 * i])
    images = AnnotatedImages(
        read_annotations(f"masks:{tmp_path / 'masks'}"), files, run.store.labels, loaded.transform
    )
    assert sum(len(batch.images) for batch in images) == len(files) - 3
    assert [Path(files[i]).name in images.unreadable[i] for i in (0, 1)] == [True, True]
    assert "a mask is 40 x 40, its photograph 48 x 40" in images.unreadable[2]


def with_seed(folder, to, seed):
    """The same run as if another seed had made it."""
    shutil.copytree(folder, to)
    metrics = json.loads((to / "metrics.json").read_text())
    metrics["config"] = {**metrics.get("config", {}), "seed": seed}
    (to / "metrics.json").write_text(json.dumps(metrics))
    return to


def test_seeds_of_one_method_are_pooled(tmp_path, run_folder):
    runs = [with_seed(run_folder, tmp_path / f"s{seed}", seed) for seed in (0, 1)]
    arguments = ["judge", *map(str, runs), "--pictures", "0", "--images", "3"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "pooled: s0, s1 differ only in their seed (0, 1)" in done.output
    assert "s0 … 2 seeds" in done.output
    judgements = {run.name: read_judgement(run) for run in runs}
    assert seed_groups(judgements) == [["s0", "s1"]]
    images = [read_images(run, judgements[run.name]) for run in runs]
    images[1] = {key: values + 1 for key, values in images[1].items()}
    judgements["s1"]["rows"] = [
        {**row, "mean": row["mean"] + 1} for row in judgements["s1"]["rows"]
    ]
    made = by_measure(pooled(list(judgements.values()), images))
    row, own = made["deletion", "evidence"], by_measure(judgements["s0"])["deletion", "evidence"]
    assert row["mean"] == pytest.approx(own["mean"] + 0.5, abs=1e-6)
    assert row["runs"] == [own["mean"], own["mean"] + 1]
    assert row["high"] - row["low"] > 0.9  # both seeds alike may be drawn
    assert made["global_size", ""]["low"] == own_number(judgements, "global_size")
    drawn = comparison_figure({"both": {"rows": [row]}})
    assert "a tick a seed" in drawn.get_supxlabel()
    assert len(drawn.axes[0].lines) == 4  # two seeds, the interval, the mean
    judgements["s1"]["run_seed"] = 0  # the same seed twice is no second seed
    assert seed_groups(judgements) == [["s0"], ["s1"]]
    judgements["s1"] |= {"run_seed": 1, "recipe": {"method": "another"}}
    assert seed_groups(judgements) == [["s0"], ["s1"]]
    judgements["s1"]["made_from"] = {"images": 3}
    with pytest.raises(ValueError, match="judge the run --again"):
        read_images(runs[1], judgements["s1"])
    assert "pooled" not in CliRunner().invoke(app, [*arguments, "--each"]).output


def own_number(judgements, measure):
    return by_measure(judgements["s0"])[measure, ""]["mean"]
