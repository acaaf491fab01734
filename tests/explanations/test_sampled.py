"""captum's and grad-cam's explanations of whole models against closed forms."""

from __future__ import annotations

import sys

import pytest
import torch

from infodisent import attach
from infodisent.evaluation.known_truth import scene_classifier
from infodisent.explanations.posthoc import shapley_cells
from infodisent.explanations.sampled import (
    integrated_gradients,
    kernel_shap,
    lime,
    occlusion,
    original_cam,
    original_gradcam,
)
from infodisent.testing.scenes import Scenes

SCENES = Scenes(2, cell=16, distractors=0, seed=3)
"""Sixteen cells of 16 pixels."""


@pytest.fixture(scope="module")
def local():
    """A detector that sees a cell in a cell: hiding one in the picture hides it in the map."""
    model = scene_classifier(SCENES, cell=16)
    batch = SCENES.batch()
    with torch.no_grad():
        maps = model.forward_features(batch.images).flatten(2).mT.contiguous()
    return model, batch.images, batch.labels, maps


def test_kernel_shap_of_a_local_model_is_the_closed_form(local):
    pytest.importorskip("captum", reason="needs the extra posthoc")
    pytest.importorskip("sklearn", reason="captum solves with scikit-learn")
    model, images, labels, maps = local
    truth = shapley_cells(model.head, maps, labels).float().unflatten(1, (4, 4))
    state = torch.random.get_rng_state()
    found = kernel_shap(model, images, labels, samples=400, batch_size=64)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (found - truth).abs().max() < 0.02 * truth.max()
    assert torch.equal(found, kernel_shap(model, images, labels, samples=400, batch_size=64))


def test_others_find_the_cells_that_count(local):
    pytest.importorskip("captum", reason="needs the extra posthoc")
    pytest.importorskip("sklearn", reason="captum solves with scikit-learn")
    model, images, labels, maps = local
    truth = shapley_cells(model.head, maps, labels).float()
    parts = (truth > 0.1 * truth.amax(1, keepdim=True)).unflatten(1, (4, 4))
    found = lime(model, images, labels, samples=200, batch_size=64)
    assert found[parts].min() > 3 * found[~parts].abs().max()
    with torch.no_grad():
        total, count = torch.zeros(2, 64, 64), torch.zeros(64, 64)
        for y in range(0, 33, 16):  # windows of two cells, moved by one
            for x in range(0, 33, 16):
                covered = images.clone()
                covered[:, :, y : y + 32, x : x + 32] = 0
                fall = (model(images) - model(covered)).gather(1, labels[:, None])
                total[:, y : y + 32, x : x + 32] += fall[:, :, None]
                count[y : y + 32, x : x + 32] += 1
    assert (occlusion(model, images, labels) - total / count).abs().max() < 1e-5
    path = integrated_gradients(model, images, labels, steps=128)
    with torch.no_grad():
        fall = model(images) - model(torch.zeros_like(images))
    wanted = fall.gather(1, labels[:, None])[:, 0]
    assert (path.sum((1, 2)) - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_gradcam_of_the_original_head_is_its_closed_form(name):
    pytest.importorskip("pytorch_grad_cam", reason="needs the extra posthoc")
    torch.manual_seed(0)
    model = attach(name, 3).eval()
    images = torch.randn(2, 3, *model.backbone.image_size)
    theirs = original_gradcam(model, images)
    assert theirs.shape == (2, *images.shape[2:])
    assert theirs.amax() > 0.9
    classes = model.original_logits(images).argmax(1)
    other = (classes + 1) % model.backbone.num_classes
    assert not torch.allclose(original_gradcam(model, images, other), theirs)
    if name == "test_convnext":  # a norm stands between its mean and its classifier
        with pytest.raises(ValueError, match="not linear in the mean"):
            original_cam(model, images)
        return
    ours = original_cam(model, images)
    from pytorch_grad_cam.utils.image import scale_cam_image

    for mine, their in zip(ours, theirs, strict=True):  # scaled and resized as they do it
        size = tuple(images.shape[:1:-1])
        scaled = scale_cam_image(scale_cam_image(mine[None].numpy(), size))[0]
        assert abs(scaled - their.numpy()).max() < 1e-5


def test_a_map_that_the_original_does_not_read_is_refused():
    pytest.importorskip("pytorch_grad_cam", reason="needs the extra posthoc")
    model = attach("test_vit", 3).eval()  # classifies its class token, after the last exchange
    with pytest.raises(ValueError, match="class token"):
        original_gradcam(model, torch.randn(1, 3, *model.backbone.image_size))


def test_what_is_missing_is_named(local, monkeypatch):
    model, images, labels, _ = local
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    for function in (lime, kernel_shap, occlusion, integrated_gradients, original_gradcam):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'infodisent\[posthoc\]'"):
            function(model, images, labels)
    with pytest.raises(ValueError, match=r"classes \(1,\), must be"):
        original_cam(model, images, labels[:1])
