"""ProtoQuant against its formulas in float64; its codebook, its size as an example."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from infodisent.methods import protoquant
from infodisent.methods.protoquant import ProtoQuantHead
from infodisent.methods.stages import LoopOptions
from infodisent.training.fit import FitConfig, fit_head, new_head

from .formulas import projections, same_loss_and_gradients


def small(**options):
    torch.manual_seed(4)
    return ProtoQuantHead(6, 3, codes=5, **options).double().eval()


def probabilities(head, x):
    """Softmax over the codes at every pixel, [B, P, M]."""
    found = []
    for rows in x.flatten(2).mT:
        cosine = projections(rows, head.codebook)[1]
        grown = (cosine / head.temperature).exp()
        found.append(grown / grown.sum(1, keepdim=True))
    return torch.stack(found)


def test_logits_loss_and_gradients_are_the_formula():
    head = small(sparsity=0.3, bias=True, temperature=0.2)
    with torch.no_grad():
        head.fc.weight[1, 2] = -0.4  # counts as 0
        head.fc.bias.normal_()
        head.codebook.mul_(2)  # only directions count
    head.codebook.requires_grad_(True)  # the gradient is there for who asks
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    every = probabilities(head, x)
    pool = head.pool(x)
    torch.testing.assert_close(pool.pos, every.amax(1))
    assert torch.equal(pool.pos_index.long(), every.argmax(1))
    weight = head.fc.weight.clamp_min(0)
    logits = every.amax(1) @ weight.mT + head.fc.bias
    torch.testing.assert_close(head(x), logits)
    labels = torch.tensor([2, 0, 1, 2])
    wanted = nn.functional.cross_entropy(logits, labels) + 0.3 * weight.sum() / 3
    same_loss_and_gradients(head, x, labels, wanted)


def blobs():
    """Pixels around four directions, in two batches; the directions."""
    torch.manual_seed(5)
    centers = nn.functional.normalize(torch.randn(4, 6))
    pixels = (centers[torch.arange(80) % 4] + 0.02 * torch.randn(80, 6)) * (1 + torch.rand(80, 1))
    maps = pixels.view(10, 8, 6)
    parts = [(maps[:7], torch.zeros(7), torch.arange(7)), (maps[7:], torch.zeros(3), None)]
    return lambda: iter(parts), centers


def test_codebook_is_k_means_of_the_pixels():
    batches, centers = blobs()
    head, again = ProtoQuantHead(6, 3, codes=4), ProtoQuantHead(6, 3, codes=4)
    (stage,) = head.stages(LoopOptions())
    with torch.no_grad():
        head.start_stage(stage, batches)
        again.start_stage(stage, batches)
    assert torch.equal(head.codebook, again.codebook)  # whatever it was before
    cosine = head.codebook @ centers.mT
    assert sorted(cosine.argmax(1).tolist()) == [0, 1, 2, 3]
    assert (cosine.amax(1) > 0.999).all()
    pixels = torch.cat([maps.flatten(0, 1) for maps, _, _ in batches()])
    unit = pixels / pixels.norm(dim=1, keepdim=True)
    nearest = (unit @ head.codebook.mT).argmax(1)
    for m, code in enumerate(head.codebook):  # a fixed point: one more round changes nothing
        mean = unit[nearest == m].sum(0)
        torch.testing.assert_close(code, mean / mean.norm())


def test_more_codes_than_pixels_and_codes_that_nobody_uses():
    batches, _ = blobs()
    head = ProtoQuantHead(6, 3, codes=100)
    (stage,) = head.stages(LoopOptions())
    with torch.no_grad():
        head.start_stage(stage, batches)
        assert head.codebook.isfinite().all()
        head.codebook[7] = -head.codebook.mean(0)
        before = head.fc.weight.clone()
        head.finish(batches)
    pixels = torch.cat([maps.flatten(0, 1) for maps, _, _ in batches()])
    used = (nn.functional.normalize(pixels) @ head.codebook.mT).argmax(1).unique()
    assert 7 not in used
    for m in range(100):
        kept = before[:, m] if m in used else torch.zeros(3)
        assert torch.equal(head.fc.weight[:, m], kept)


def test_trains_on_stored_features(store):
    head = new_head(store.channels, 2, 0, method="protoquant", codes=16)
    history = fit_head(head, store, FitConfig(), progress=False)
    assert len(history) == protoquant.EPOCHS
    assert history[-1]["accuracy"] > 0.9
    assert (head.class_weights() >= 0).all()


def test_epochs_that_are_given_count(store):
    head = new_head(store.channels, 2, 0, method="protoquant", codes=4)
    assert len(fit_head(head, store, FitConfig(epochs=3), progress=False)) == 3


def test_a_method_is_a_short_file():
    assert len(inspect.getsource(protoquant).splitlines()) < 150


BAD = {
    "codes": ({"codes": 0}, "ProtoQuantHead: codes is 0"),
    "temperature": ({"temperature": 0.0}, "ProtoQuantHead: temperature is 0.0, allowed"),
    "sparsity": ({"sparsity": -1.0}, "ProtoQuantHead: sparsity is -1.0"),
    "classes": ({"num_classes": -1}, "ProtoQuantHead: num_classes is -1"),
    "layout": ({"input_fmt": "CHWN"}, "ProtoQuantHead: input_fmt"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ProtoQuantHead(**{"in_features": 4, "num_classes": 2, **change})
