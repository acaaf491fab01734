"""The loops that judging is timed against compute what it computes, and never slip away unseen."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import judge_speed
from infodisent.evaluation.known_truth import Distracted, scene_classifier
from infodisent.evaluation.misalignment import misalignment
from infodisent.testing.scenes import Scenes


@pytest.fixture
def small(monkeypatch):
    scenes = Scenes(8, cell=8, seed=4)
    model, batch = scene_classifier(scenes, Distracted), scenes.batch()
    with torch.no_grad():
        maps = model.forward_features(batch.images).flatten(2).mT.contiguous()
    maps = maps + 1e-4 * torch.rand(maps.shape)  # no two cells are alike
    monkeypatch.setattr(judge_speed, "inputs", lambda args: (model, maps, batch.images[:2]))
    monkeypatch.setattr(judge_speed, "PIXEL_STEPS", 3)
    monkeypatch.setattr(judge_speed, "STEPS", 40)
    return model, batch


def options(**changed):
    given = {"loop_images": 2, "epsilon": 0.1, "quantus": False}
    return argparse.Namespace(**given | changed)


@pytest.mark.slow
def test_every_contest_is_of_equal_results(small):
    rows = judge_speed.contests(options())
    assert [row["what"].split(",")[0] for row in rows] == ["cells"] + ["misalignment"] * 3 + [
        "pixels"
    ]
    assert all(row["difference"] <= 1e-3 for row in rows if row["what"].startswith("cells"))
    assert all(row["seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_the_released_loop_finds_what_noise_finds(small):
    model, batch = small
    images, labels = batch.images[:3], batch.labels[:3]
    noise = misalignment(model, images, labels, attack="noise")
    found = judge_speed.released_attack(model, images, true_gradient=False)
    assert (found - noise.pac).abs().max() < 1e-2


def test_a_loop_that_differs_ends_the_benchmark(small, monkeypatch):
    monkeypatch.setattr(
        judge_speed, "loop_over_cells", lambda head, maps, *rest: torch.zeros(2, len(maps), 65)
    )
    with pytest.raises(SystemExit, match="differs from a pass a step"):
        judge_speed.contests(options())
