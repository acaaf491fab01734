"""The misalignment benchmark on detectors whose answer is known."""

from __future__ import annotations

import pytest
import torch

import infodisent.evaluation.misalignment as misalignment_module
from infodisent.evaluation.misalignment import ATTACKS, misalignment
from infodisent.testing.scenes import Scenes

from .scene_models import Distracted, scene_model


@pytest.fixture(scope="module")
def scenes():
    return Scenes(8, cell=8, seed=4)


def run(model, scenes, **options):
    batch = scenes.batch()
    options = {"own": 3, "iterations": 10, "step": 0.04, "batch_size": 4} | options
    return misalignment(model, batch.images, batch.labels, **options)


def test_a_local_detector_is_aligned(scenes):
    """What is outside the box cannot reach it, and nothing there looks like its part."""
    model = scene_model(scenes)
    for attack in ATTACKS:
        found = run(model, scenes, attack=attack, epsilon=0.1)  # too little to fake a colour
        assert found.pac.abs().max() < 1e-4
        assert found.plc.abs().max() < 1e-4
        assert (found.prc <= 0).all()
        assert found.unit.shape == (8,)


def test_descent_finds_what_noise_does_not(scenes):
    """This detector's answer falls with the brightness of pixels that it says it ignores."""
    model = scene_model(scenes, Distracted)
    descent, noise = (run(model, scenes, attack=attack) for attack in ATTACKS)
    assert noise.pac.abs().max() < 5
    assert (descent.pac > 10).all()
    assert (descent.pac > noise.pac).all()
    more = run(model, scenes, epsilon=0.8, step=0.08)
    assert (more.pac > descent.pac).all()
    with torch.no_grad():
        bright = scenes.batch().images.mean()
    # every pixel but those of the box 0.4 brighter: 1 - (2 - m - 0.4) / (2 - m) at most
    assert descent.pac.max() < 100 * 0.4 / (2 - float(bright)) + 2


def test_the_attack_is_that_of_a_loop(scenes):
    """One image, the same start, the gradient of the whole model."""
    model = scene_model(scenes, Distracted)
    batch = scenes.batch([5])
    found = misalignment(
        model, batch.images, batch.labels, iterations=3, step=0.1, own=3, epsilon=0.2, seed=7
    )
    unit = int(found.unit[0])
    start = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(7)) * 2 - 1
    with torch.no_grad():
        seen = model.forward_features(batch.images)[:, unit : unit + 1]
        large = torch.nn.functional.interpolate(seen, (64, 64), mode="bicubic")[0, 0]
        before = float(seen.max())
    rows, columns = (large >= large.quantile(0.95)).nonzero(as_tuple=True)
    outside = torch.ones(64, 64)
    outside[max(0, int(rows.min()) - 3) : int(rows.max()) + 4,
            max(0, int(columns.min()) - 3) : int(columns.max()) + 4] = 0  # fmt: skip
    assert outside.min() == 0
    change, lowest = 0.2 * start * outside, 1e9
    for _ in range(4):
        change.requires_grad_()
        value = model.forward_features(batch.images + change)[0, unit].max()
        lowest = min(lowest, value.item())
        (gradient,) = torch.autograd.grad(value, change)
        change = ((change - 0.1 * gradient.sign()).clamp(-0.2, 0.2) * outside).detach()
    assert float(found.pac[0]) == pytest.approx(100 * (1 - lowest / before), abs=1e-3)


class Rival(Distracted):
    """One more unit, of no class's own, between the attacked unit's values before and after."""

    level = 0.0

    def forward(self, x):
        maps = super().forward(x)
        return torch.cat([maps[:, :5], torch.full_like(maps[:, :1], self.level)], 1)


def test_ranking_and_accuracy_count_what_changed(scenes):
    model = scene_model(scenes, Rival)
    with torch.no_grad():
        model.head.fc.weight[:, 5] = 0
    batch = scenes.batch([0])
    options = {"own": 3, "iterations": 10, "step": 0.04}
    before = misalignment(model, batch.images, batch.labels, **options)
    assert before.prc == 0
    with torch.no_grad():
        maps = model.forward_features(batch.images)[0, int(before.unit)]
    model.backbone.model.level = float(maps.max()) * (1 - float(before.pac) / 200)
    assert misalignment(model, batch.images, batch.labels, **options).prc == 1
    with torch.no_grad():
        model.head.fc.weight[0, 5] = 1e-6  # now it is the class's own
    assert misalignment(model, batch.images, batch.labels, **options | {"own": 4}).prc == 0

    model = scene_model(scenes)
    batch = scenes.batch()
    found = run(model, scenes, epsilon=3.0, attack="noise")  # no other part is left: 1 class in 4
    assert found.ac.mean() > 30
    assert set(found.ac.tolist()) == {0, 100}
    wrong = (batch.labels + 1) % 8
    other = misalignment(
        model, batch.images, wrong, own=3, iterations=0, attack="noise", epsilon=0.0
    )
    for metric in (other.plc, other.prc, other.pac, other.ac):
        assert (metric == 0).all()  # an attack of size 0, whatever the labels
    blank = misalignment(model, torch.zeros(2, 3, 64, 64), torch.zeros(2).long())
    assert blank.pac.isnan().all()
    assert blank.prc.isnan().all()
    assert (blank.ac == 0).all()


def test_choices_and_sides(scenes):
    model = scene_model(scenes)
    batch = scenes.batch()
    with torch.no_grad():
        strongest = model.head.pool(model.forward_features(batch.images)).pos.argmax(1)
        model.head.fc.weight.mul_(torch.tensor([5.0, 5, 1, 1, 1, 1]))
    by_value = run(model, scenes, choose="activation", attack="noise")
    assert torch.equal(by_value.unit, strongest)
    by_weight = run(model, scenes, attack="noise")
    assert (by_weight.unit <= 1).all()  # the head's variants
    assert run(model, scenes, sign=-1, attack="noise").pac.isnan().all()  # it has no such side
    for options, message in (
        ({"attack": "fgsm"}, "attack is 'fgsm', allowed are pgd, noise"),
        ({"choose": "all"}, "choose is 'all'"),
        ({"sign": 0}, "sign is 0"),
        ({"step": 0.0}, "step 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, scenes, **options)
    with pytest.raises(ValueError, match=r"labels is \(7,\), must be \(8,\)"):
        misalignment(model, batch.images, batch.labels[1:])


def test_an_image_without_activation_takes_no_more_steps(scenes, monkeypatch):
    """Bright enough everywhere else, the detector sees nothing, which no step can lower."""
    seen = []

    class Counted(Distracted):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    model, batch = scene_model(scenes, Counted), scenes.batch()
    batch.images[:4, :, :6] = batch.images[:4, :, -6:] = 1.0  # brighter ones are there earlier
    options = {"own": 3, "step": 0.15, "epsilon": 3.0, "batch_size": 8}
    seen.clear()
    found = misalignment(model, batch.images, batch.labels, iterations=40, **options)
    assert (found.pac == 100).all()
    assert len(seen) < 30  # of 41 and the one before
    assert sum(seen) < 8 * len(seen)  # images leave one by one
    few = misalignment(model, batch.images, batch.labels, iterations=len(seen), **options)
    assert torch.equal(few.plc, found.plc)
    assert torch.equal(few.prc, found.prc)


def test_the_published_step_is_a_fortieth_of_the_published_epsilon(scenes):
    model, batch = scene_model(scenes, Distracted), scenes.batch([1, 2])
    options = {"own": 3, "iterations": 4}
    given = misalignment(model, batch.images, batch.labels, epsilon=0.4, step=0.01, **options)
    default = misalignment(model, batch.images, batch.labels, **options)
    assert torch.equal(default.pac, given.pac)
    small = misalignment(model, batch.images, batch.labels, epsilon=0.1, **options)
    assert (small.pac < default.pac).all()


def test_noise_takes_two_passes_of_the_backbone(scenes, monkeypatch):
    """Before and after: what the attack saw is what is measured, not computed again."""
    model, passes = scene_model(scenes, Distracted), []
    original = misalignment_module.maps_of
    monkeypatch.setattr(
        misalignment_module, "maps_of", lambda *a: (passes.append(1), original(*a))[1]
    )
    run(model, scenes, attack="noise", batch_size=8)
    assert len(passes) == 2
