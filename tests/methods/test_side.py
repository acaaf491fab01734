"""SIDE-like: the pruning against loops, weights that stay pruned, the loss, many labels."""

from __future__ import annotations

import math

import pytest
import torch

from infodisent.evaluation.accuracy import evaluate_head
from infodisent.methods.side import SideLikeHead
from infodisent.methods.stages import TrainingBatch
from infodisent.training.fit import FitConfig, fit_head, new_head

from .planted import many_labels, one_class

CONFIG = FitConfig(epochs=6, batch_size=8, lr=0.05, rotation_lr=0.02)


def test_pruning_is_the_formula():
    torch.manual_seed(5)
    head = SideLikeHead(6, 4, per_class=2).eval()
    with torch.no_grad():
        head.rotation.A.normal_()
        head.fc.weight.uniform_(0, 1)
    maps, labels = torch.randn(9, 3, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1])  # none of 3
    weight = head.class_weights().detach().clone()
    pooled = head.pool(maps, input_fmt="NLC").pooled.detach()
    head.prune(lambda: zip(maps.split(4), labels.split(4), labels.split(4), strict=True))
    after = head.class_weights()
    for k in range(4):
        of_class = [p for p, label in zip(pooled, labels.tolist(), strict=True) if label == k]
        mean = sum(of_class) / len(of_class) if of_class else pooled.mean(0)
        ranked = sorted(range(6), key=lambda c: -float(weight[k, c] * mean[c]))[:2]
        kept = {c for c in ranked if weight[k, c] * mean[c] > 0}
        assert {c for c in range(6) if head.kept[k, c]} == kept
        for c in range(6):
            assert after[k, c] == (weight[k, c] if c in kept else 0)


def test_training_keeps_few_channels(tmp_path):
    def build():
        return new_head(8, 3, 0, method="side-like", per_class=3)

    def dies(epoch, figures):
        if epoch == 8:  # in the fine-tuning
            raise KeyboardInterrupt

    store, head, state = one_class(), build(), tmp_path / "state.safetensors"
    expected = fit_head(head, store, CONFIG, progress=False)
    assert len(expected) == 5 + 6
    weight = head.class_weights()
    assert ((weight > 0).sum(1) <= 3).all()
    assert torch.equal(weight > 0, (weight > 0) & head.kept)
    figures = evaluate_head(head, store, store.indices("train"))
    assert figures.accuracy > 0.9
    assert figures.explanation_size <= 3
    with pytest.raises(KeyboardInterrupt):
        fit_head(build(), store, CONFIG, state=state, callbacks=[dies], progress=False)
    resumed = build()
    assert fit_head(resumed, store, CONFIG, state=state, progress=False) == expected
    assert all(map(torch.equal, head.state_dict().values(), resumed.state_dict().values()))


def test_loss_is_binary_cross_entropy_of_every_class():
    head = SideLikeHead(4, 3)
    torch.testing.assert_close(head.fc.bias.detach().sigmoid(), torch.full((3,), 1 / 3))
    logits, labels = torch.randn(4, 3), torch.tensor([1, 0, 2, 1])
    want = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for k, logit in enumerate(row):
            want += math.log1p(math.exp(-logit if k == label else logit)) / 4
    loss = head.loss(lambda *_: pytest.fail("the objective"), logits, TrainingBatch(labels))
    assert loss.item() == pytest.approx(want, rel=1e-5)


def test_multilabel():
    head = new_head(8, 3, 0, method="side-like", per_class=2)
    config = FitConfig(epochs=30, batch_size=8, lr=0.05, rotation_lr=0.02, l1=0.0)
    history = fit_head(head, many_labels(), config, progress=False)
    assert (head.class_weights() > 0).sum(1).max() <= 2
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accuracy"] > 0.9


def test_a_class_without_channels_is_named():
    head = SideLikeHead(4, 3)
    assert head.notices() == ()
    head.kept[1] = False
    assert head.notices() == ("1 of 3 classes have no channel left: [1]",)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"per_class": 0}, "per_class is 0"), ({"nonneg": "softplus"}, "nonneg is 'softplus'")],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=f"SideLikeHead: {message}"):
        SideLikeHead(4, 2, **change)


def test_probabilities_are_those_that_it_is_trained_for(tmp_path):
    from PIL import Image

    import infodisent

    model = infodisent.attach("test_resnet", 3, method="side-like").eval()
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "a.png")
    why = infodisent.explain(model, tmp_path / "a.png")
    assert torch.equal(why.probabilities, why.logits.sigmoid())
    plain = infodisent.explain(infodisent.attach("test_resnet", 3).eval(), tmp_path / "a.png")
    assert torch.equal(plain.probabilities, plain.logits.softmax(0))
