"""Closed forms against what they replace: all coalitions, autograd, captum, pytorch-grad-cam."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from infodisent.explanations import unit_maps
from infodisent.explanations.posthoc import (
    EXPLAINERS,
    evidence,
    gradcam,
    shapley_cells,
    shapley_units,
)
from infodisent.methods import METHODS, InfoDisentHead, build_head

P, C, K = 9, 6, 3
OPTIONS = [("infodisent", {}), ("infodisent", {"rotate": False, "bias": True})]
OPTIONS += [("protopnet", {"per_class": 2, "similarity": s}) for s in ("cosine", "l2")]
OPTIONS += [(name, {}) for name in METHODS if name not in ("infodisent", "protopnet")]


def make_head(method, options, channels=C):
    torch.manual_seed(4)
    head = build_head(method, channels, K, **options).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.dtype.is_floating_point:
                parameter.normal_(0, 0.4)
        head.after_step()
    return head.requires_grad_(False)


@pytest.fixture(params=OPTIONS, ids=lambda o: "-".join([o[0], *map(str, o[1].values())]))
def head(request):
    return make_head(*request.param)


@pytest.fixture
def maps():
    return torch.randn(4, P, C)


CLASSES = torch.tensor([0, 2, 1, 2])


def worth(head, pixels, classes):
    """The score of one image's class without its offset, of the cells in `pixels` alone."""
    if not len(pixels):
        return 0.0
    pooled = head.pool(pixels[None], input_fmt="NLC").pooled
    score = head.scores(head.classify(pooled))[0, int(classes)]
    return float(score) - float(head.offsets(classes[None])[0])


def shapley_by_hand(head, pixels, label):
    """Every coalition of the cells, from the definition, in float64."""
    count = len(pixels)
    worths = {
        members: worth(head, pixels[list(members)], label)
        for size in range(count + 1)
        for members in itertools.combinations(range(count), size)
    }
    phi = torch.zeros(count, dtype=torch.float64)
    for members, value in worths.items():
        for cell in range(count):
            if cell not in members:
                joined = tuple(sorted((*members, cell)))
                share = math.factorial(len(members)) * math.factorial(count - len(members) - 1)
                phi[cell] += share / math.factorial(count) * (worths[joined] - value)
    return phi


def or_skip(function, *arguments):
    """A method of another kind says so; that is its right answer."""
    try:
        return function(*arguments)
    except ValueError as reason:
        assert arguments[0].method not in ("infodisent", "protopnet")
        pytest.skip(str(reason))


def test_shapley_of_cells_is_that_of_all_coalitions(head, maps):
    maps = maps[:2, :7]
    phi = or_skip(shapley_cells, head, maps, CLASSES[:2])
    for i in range(2):
        truth = shapley_by_hand(head, maps[i], CLASSES[i])
        assert (phi[i].double() - truth).abs().max() < 1e-5
        assert truth.abs().max() > 1e-3


def test_shapley_sums_to_the_score(head, maps, monkeypatch):
    phi = or_skip(shapley_cells, head, maps, CLASSES)
    logits = head.scores(head(maps.transpose(1, 2).unflatten(2, (3, 3))))
    score = logits.gather(1, CLASSES[:, None])[:, 0] - head.offsets(CLASSES)
    assert (phi.sum(1) - score).abs().max() < 1e-5
    assert (evidence(head, maps, CLASSES).sum(1) - score).abs().max() < 1e-5
    monkeypatch.setattr(unit_maps, "BYTES", 1)  # an image at a time
    torch.testing.assert_close(shapley_cells(head, maps, CLASSES), phi, rtol=1e-5, atol=1e-6)


def test_shapley_of_a_realistic_map_in_float32():
    head = make_head("infodisent", {}, channels=128)
    maps = torch.randn(8, 196, 128)
    maps[:, 5] = maps[:, 6]  # ties share
    classes = torch.arange(8) % K
    phi = shapley_cells(head, maps, classes)
    logit = head(maps, input_fmt="NLC").gather(1, classes[:, None])[:, 0]
    assert (phi.sum(1) - logit).abs().max() < 1e-5
    torch.testing.assert_close(phi[:, 5], phi[:, 6])


def test_shapley_of_units_is_that_of_all_coalitions(head, maps):
    pooled = head.pool(maps, input_fmt="NLC").pooled[:1]
    phi = or_skip(shapley_units, head, pooled, CLASSES[:1])[0]
    players = phi.abs().topk(min(5, len(phi))).indices.tolist()  # of more units 2^M is too many
    truth = torch.zeros(len(phi), dtype=torch.float64)
    for order in itertools.permutations(players):
        units = torch.zeros_like(pooled)
        before = float(head.scores(head.classify(units))[0, CLASSES[0]])
        for unit in order:
            units[0, unit] = pooled[0, unit]
            after = float(head.scores(head.classify(units))[0, CLASSES[0]])
            truth[unit] += after - before
            before = after
    truth /= math.factorial(len(players))
    assert (truth - phi.double())[players].abs().max() < 1e-5


def test_evidence_lies_at_the_winners_and_shows_both_sides():
    head = InfoDisentHead(1, 1, rotate=False)
    with torch.no_grad():
        head.fc.weight.fill_(2.0)
    maps = torch.tensor([[[3.0], [-3.0], [1.0]], [[4.0], [-1.0], [0.0]]])
    shown = evidence(head.eval(), maps, torch.zeros(2, dtype=torch.long))
    assert shown.tolist() == [[6, -6, 0], [8, -2, 0]]  # the first adds up to 0, and is not nothing


def test_gradcam_is_that_of_autograd(head, maps):
    x = maps.clone().requires_grad_()
    head(x, input_fmt="NLC").gather(1, CLASSES[:, None]).sum().backward()
    alpha = x.grad.mean(1, keepdim=True)
    truth = (alpha * maps).sum(2).clamp_min(0)
    assert (gradcam(head, maps, CLASSES) - truth).abs().max() < 1e-5
    silent = head.abstains(head.pool(maps, input_fmt="NLC").pooled)
    assert truth.max() > 0 or (silent is not None and silent.all())


def test_gradcam_of_channels_needs_no_backward_pass(maps, monkeypatch):
    head = make_head("infodisent", {})
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("a backward pass"))
    with torch.inference_mode():
        assert gradcam(head, maps, CLASSES).max() > 0


def test_gradcam_is_that_of_pytorch_grad_cam(head, maps):
    library = pytest.importorskip("pytorch_grad_cam", reason="needs the extra posthoc")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = nn.Identity()
    model = nn.Sequential(layer, head)
    pictures = maps.transpose(1, 2).unflatten(2, (3, 3)).clone().requires_grad_()
    targets = [ClassifierOutputTarget(int(k)) for k in CLASSES]
    with library.GradCAM(model, [layer]) as cam:
        theirs = torch.from_numpy(cam(pictures, targets)).flatten(1)
    ours = gradcam(head, maps, CLASSES)
    low = ours.amin(1, keepdim=True)
    scaled = (ours - low) / (ours - low).amax(1, keepdim=True).add(1e-7)  # as they scale, twice
    scaled = scaled / scaled.amax(1, keepdim=True).add(1e-7)
    assert (scaled - theirs).abs().max() < 1e-5


def test_kernel_shap_at_its_limit_is_the_closed_form(head, maps):
    """captum's regression, shown every coalition as often as it would draw it in the long run."""
    attribution = pytest.importorskip("captum.attr", reason="needs the extra posthoc")
    pytest.importorskip("sklearn", reason="captum solves with scikit-learn")
    pixels = maps[:1, :6]
    phi = or_skip(shapley_cells, head, pixels, CLASSES[:1])[0].double()
    rows = torch.cartesian_prod(*[torch.tensor([0, 1])] * 6)  # every coalition, in binary order
    worths = torch.tensor([worth(head, pixels[0][row > 0], CLASSES[0]) for row in rows])
    scale = phi.abs().max()
    often = {0: 1, 1: 12, 2: 3, 3: 2, 4: 3, 5: 12, 6: 1}  # 72 · 5 / (k (6 - k) C(6, k))

    class Limit(attribution.KernelShap):
        def kernel_shap_perturb_generator(self, original_inp, **kwargs):
            yield from torch.cat([r.repeat(often[int(r.sum())], 1) for r in rows]).split(1)

    def score(present):  # [n, 6], captum's players
        number = (present.long() * torch.tensor([32, 16, 8, 4, 2, 1])).sum(1)
        return worths[number] / scale

    samples = sum(often[int(row.sum())] for row in rows)
    found = Limit(score).attribute(
        torch.ones(1, 6), n_samples=samples, perturbations_per_eval=samples
    )
    assert (found[0].double() - phi / scale).abs().max() < 2e-3  # float32, weights of a million


def test_maps_that_depend_on_other_pixels_have_no_closed_form(maps):
    """ProtoPool subtracts the image's mean, which a part of the cells does not have."""
    head = make_head("protopool", {})
    units = unit_maps.UnitMaps(head)
    assert not units.pointwise
    pooled = head.pool(maps, input_fmt="NLC").pooled
    torch.testing.assert_close(units.of_images(maps).amax(1).clamp_min(0), pooled)  # by image
    for some in (maps, maps[:1]):  # alone, an image's maxima are its units: that is not enough
        with pytest.raises(ValueError, match="depend on the image's other pixels"):
            shapley_cells(head, some, CLASSES[: len(some)])
    assert unit_maps.UnitMaps(make_head("protopnet", {})).pointwise


def test_arguments_are_named(maps):
    head = make_head("infodisent", {})
    for name, explainer in EXPLAINERS.items():
        with pytest.raises(ValueError, match=r"maps is \(4, 9, 5\)"):
            explainer(head, maps[..., :5], CLASSES)
        with pytest.raises(ValueError, match=r"classes is \(3,\)"):
            explainer(head, maps, CLASSES[:3])
        with pytest.raises(ValueError, match="0 … 2"):
            explainer(head, maps, CLASSES + 1)
        assert explainer(head, maps[:0], CLASSES[:0]).shape == (0, P), name


def test_heads_without_a_closed_form_are_refused(maps, monkeypatch):
    head = make_head("infodisent", {})
    plain = type(head).classify
    monkeypatch.setattr(type(head), "classify", lambda self, units: plain(self, units).sigmoid())
    with pytest.raises(ValueError, match="no weighted sum of its channels"):
        shapley_cells(head, maps, CLASSES)
    with pytest.raises(ValueError, match="no weighted sum"):
        shapley_units(head, torch.rand(4, C), CLASSES)
    x = maps.clone().requires_grad_()  # Grad-CAM has one still
    head(x, input_fmt="NLC", pre_logits=True)
    head.classify(head.pool(x, input_fmt="NLC").pooled).gather(1, CLASSES[:, None]).sum().backward()
    truth = (x.grad.mean(1, keepdim=True) * maps).sum(2).clamp_min(0)
    torch.testing.assert_close(gradcam(head, maps, CLASSES), truth)
    monkeypatch.undo()
    pooled = type(head).pool

    def off(self, x, **options):
        pool = pooled(self, x, **options)
        return pool._replace(pos=pool.pos - 0.5)

    monkeypatch.setattr(type(head), "pool", off)
    with pytest.raises(ValueError, match="not the largest values of their maps"):
        shapley_cells(head, maps, CLASSES)
