"""EPIC: logits that no rotation changes, purity against loops in float64, where W comes from."""

from __future__ import annotations

import pytest
import torch

import infodisent
from infodisent.backbones.linear_head import linear_classifier
from infodisent.data.images import scan_folder
from infodisent.evaluation.accuracy import evaluate_head, linear_probe, pool_features
from infodisent.methods.epic import EPICHead
from infodisent.methods.purity import find_images, mean_purity
from infodisent.methods.stages import TrainingBatch
from infodisent.training import fit as fitting
from infodisent.training.fit import FitConfig, fit_head, new_head
from infodisent.training.run import fit, open_run

from .planted import many_labels

CONFIG = FitConfig(epochs=8, batch_size=8, lr=0.02, rotation_lr=0.02)


def turned(channels=6, classes=3, **options):
    """A head with random weights and a rotation far from the identity."""
    torch.manual_seed(2)
    weight, bias = torch.randn(classes, channels), torch.randn(classes)
    head = EPICHead.from_linear(weight, bias, **options)
    with torch.no_grad():
        head.rotation.A.normal_()
    return head.eval(), weight, bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_rotation_changes_a_logit(layout, dtype):
    build, (head, weight, bias) = layout[1], turned(**layout[0])
    assert not torch.allclose(head.rotation(), torch.eye(6), atol=0.5)
    x = torch.randn(5, 6, 3, 4).to(dtype)
    want = x.double().flatten(2).mean(2) @ weight.double().mT + bias.double()
    with torch.no_grad():
        for logits in (head(build(x)), head.classify(head.pool(build(x)).pooled)):
            assert (logits.double() - want).abs().max() <= 1e-4
        for k in range(3):
            classes = torch.full((5,), k)
            parts = head.contributions(head.pool(build(x)).pooled, classes)
            total = parts.sum(1) + head.offsets(classes)
            assert (total.double() - want[:, k]).abs().max() <= 1e-4


def test_autocast_changes_no_logit_either():
    head, weight, bias = turned(64)
    x = torch.randn(5, 64, 3, 4)
    want = x.flatten(2).mean(2) @ weight.mT + bias
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for logits in (head(x), head.classify(head.pool(x).pooled)):
            assert (logits - want).abs().max() <= 1e-4


def test_units_are_means_and_extremes():
    head = turned()[0].double()
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    y = torch.einsum("uc,bcp->bup", head.rotation().detach(), x.flatten(2))
    pool = head.pool(x)
    torch.testing.assert_close(pool.pooled, y.mean(2))
    for b in range(4):
        for c in range(6):
            up, down = pool.pos_index[b, c].item(), pool.neg_index[b, c].item()
            if y[b, c].mean() > 0:
                assert (up, down) == (y[b, c].argmax().item(), -1)
            else:
                assert (up, down) == (-1, y[b, c].argmin().item())


def slow_purity(u, maps, count, side):
    """Mean purity of the images of greatest mean, by loops; and which images they are."""
    values, chosen = [], []
    for row in u:
        means = [float(sum(row @ p for p in x) / len(x)) * side for x in maps]
        best = sorted((i for i, m in enumerate(means) if m > 0), key=lambda i: -means[i])[:count]
        chosen.append(best)
        for i in best:
            value, pixel = max((float(row @ p) * side, j) for j, p in enumerate(maps[i]))
            values.append(max(value, 0) / float((u @ maps[i][pixel]).norm()))
    return values, chosen


def batches_of(maps, labels=None):
    labels = torch.zeros(len(maps), dtype=torch.int64) if labels is None else labels
    return lambda: zip(
        maps.split(4), labels.split(4), torch.arange(len(maps)).split(4), strict=True
    )


def test_purity_and_its_gradient_are_the_formula():
    head = turned(5, images=4, keep=2, sides="both")[0].double()
    maps = torch.randn(9, 3, 5, dtype=torch.float64)
    u = head.rotation().detach()
    with torch.no_grad():
        measured = mean_purity(
            batches_of(maps), lambda x: head.pool(x, input_fmt="NLC"), head.rotation(), 2
        )
        images = find_images(batches_of(maps), lambda x: head(x, True, input_fmt="NLC"), 5, 4)
    for s, side in enumerate((1, -1)):
        values, _ = slow_purity(u, maps, 2, side)
        assert measured[s].item() == pytest.approx(sum(values) / len(values), abs=1e-6)
        for c, best in enumerate(slow_purity(u, maps, 4, side)[1]):
            assert images[s, : len(best), c].tolist() == best
            assert (images[s, len(best) :, c] == -1).all()
    # the loss of a batch: the prototypes in it, in any order, and no others
    stage = head.stages(FitConfig())[-1]
    with torch.no_grad():
        head.start_epoch(stage, 0, 3, batches_of(maps))
    positions = torch.tensor([7, 2, 8, 0])
    pooled, extra = head.train().training_pool(maps[positions], input_fmt="NLC")
    batch = TrainingBatch(
        torch.zeros(4, dtype=torch.int64), pooled, extra, "rotation", 0.0, positions
    )
    loss = head.loss(lambda *_: pytest.fail("the objective"), head.classify(pooled), batch)
    turning = u.clone().requires_grad_()
    pure = []
    for side in (1, -1):
        for c, best in enumerate(slow_purity(u, maps, 4, side)[1]):
            for i in set(best) & set(positions.tolist()):
                y = side * maps[i] @ turning[c]
                pure.append(y.max().clamp_min(0) / maps[i][y.argmax()].norm())
    want = -torch.stack(pure).mean()
    torch.testing.assert_close(loss, want)
    want.backward()
    direct = torch.autograd.grad(loss, head.rotation.A)[0]
    again = head.rotation.A.detach().clone().requires_grad_()
    exponential = torch.linalg.matrix_exp(again - again.mT)
    (through,) = torch.autograd.grad(exponential, again, turning.grad)
    torch.testing.assert_close(direct, through)


def test_fewer_images_count_with_every_search():
    head = turned(4, images=9, keep=3, refresh=2)[0]
    maps = torch.rand(20, 3, 4)
    stage, counts = head.stages(FitConfig())[-1], []
    with torch.no_grad():
        head.rotation.A.zero_()
        for epoch in range(6):
            head.start_epoch(stage, epoch, 6, batches_of(maps))
            counts.append((head.prototypes[0] >= 0).sum(0).tolist())
            assert (head.prototypes[1] == -1).all()  # "positive"
    assert counts == [[n] * 4 for n in (9, 9, 6, 6, 3, 3)]


def test_training_makes_channels_purer_and_leaves_logits(store):
    head = new_head(store.channels, 2, 0, method="epic", images=8)
    train = store.indices("train")
    maps = store.gather(torch.arange(len(store)))
    logits = []

    def keep(epoch, figures):
        with torch.no_grad():
            logits.append(head.eval()(maps, input_fmt="NLC"))

    history = fit_head(head, store, CONFIG, progress=False, callbacks=[keep])
    assert len(history) == 16
    assert history[7]["accuracy"] > 0.9
    assert history[7]["loss"] > 0 > history[-1]["loss"]  # minus a purity
    for later in logits[8:]:
        assert torch.equal(later, logits[7])  # of the map itself
    with torch.no_grad():
        by_units = head.classify(pool_features(head, store, torch.arange(len(store))))
    # float32: a product of the map with U, and one with the weights turned by it
    torch.testing.assert_close(
        by_units, logits[7], rtol=0, atol=2e-5 * float(logits[7].abs().max())
    )
    before, after = head.purity[:, 0].tolist()
    assert after > 1.15 * before
    assert f"positive {before:.3f} before" in head.notices()[0]
    assert (head.prototypes == -1).all()
    test = store.indices("val")
    ours, probe = (evaluate_head(head, store, test), linear_probe(store, train, test))
    assert abs(ours.accuracy - probe.accuracy) <= 0.03


def test_interrupted_rotation_goes_on(tmp_path, store, monkeypatch):
    """At an odd epoch, in which the prototypes are those of the epoch before."""

    def build():
        return new_head(store.channels, 2, 0, method="epic", images=8, parametrization="lie")

    config = FitConfig(epochs=3, batch_size=8, rotation_lr=0.02)
    whole, state = build(), tmp_path / "state.safetensors"
    expected = fit_head(whole, store, config, progress=False)
    plain = fitting.save_state

    def dies(path, run, head, optimizer, history):
        plain(path, run, head, optimizer, history)
        if len(history) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_head(build(), store, config, state=state, progress=False)
    monkeypatch.setattr(fitting, "save_state", plain)
    resumed = build()
    assert fit_head(resumed, store, config, state=state, progress=False) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value.nan_to_num(), resumed.state_dict()[name].nan_to_num()), name


def test_the_models_own_classifier(tmp_path, image_folder):
    """Where the classes are the model's own nothing is trained but the rotation."""
    torch.manual_seed(1)
    model = infodisent.attach("test_resnet", method="epic", images=8)
    assert not model.head.fc.given  # random weights are nobody's classifier
    model.backbone.trained = True
    again = infodisent.attach(model.backbone, method="epic", images=8)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (again.eval()(x) - again.original_logits(x)).abs().max() <= 1e-4
    two = infodisent.attach(model.backbone, 2, method="epic", images=8)
    assert not two.head.fc.given
    known = {"red": 3, "green": 7}
    run = fit(
        two, scan_folder(image_folder), tmp_path / "run", CONFIG, keep=2, probe=False,
        original_classes=known, progress=False,
    )  # fmt: skip
    assert len(run.metrics["history"]) == 8
    original, ours = run.metrics["rows"]
    assert (original["head"], ours["head"]) == ("original head", "EPIC")
    assert ours["accuracy"] == original["accuracy"]
    loaded = open_run(tmp_path / "run")[0].model
    assert loaded.head.fc.given
    with torch.no_grad():
        columns = [known[name] for name in run.metrics["images"]["classes"]]
        want = loaded.original_logits(x)[:, columns]
        assert (loaded.eval()(x) - want).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet"])
def test_linear_heads_are_known_by_what_they_compute(name):
    backbone = infodisent.attach(name, 2).backbone
    found = linear_classifier(backbone)
    assert (found is None) == (name != "test_efficientnet")  # a norm after the pool, a token


def test_multilabel():
    head = new_head(8, 3, 0, method="epic", images=6, keep=2)
    config = FitConfig(epochs=10, batch_size=8, lr=0.1)
    history = fit_head(head, many_labels(), config, progress=False)
    assert history[9]["accuracy"] > 0.9
    assert history[9]["loss"] < history[0]["loss"]


BAD = {
    "keep": ({"keep": 0}, "keep is 0"),
    "images": ({"images": 3}, r"images is 3, must be >= keep \(5\)"),
    "refresh": ({"refresh": 1.5}, "refresh is 1.5"),
    "sides": ({"sides": "negative"}, "sides is 'negative', allowed are positive, both"),
    "decay": ({"weight_decay": float("nan")}, "weight_decay is nan"),
    "parametrization": ({"parametrization": "qr"}, "parametrization is 'qr'"),
    "classes": ({"num_classes": -1}, "num_classes is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"EPICHead: {message}"):
        EPICHead(**{"in_features": 4, "num_classes": 2, **change})


def test_a_loop_of_ones_own_says_which_images():
    head = turned()[0]
    units, extra = head.training_pool(torch.randn(2, 6, 2, 2))
    batch = TrainingBatch(torch.tensor([0, 1]), units, extra, "rotation")
    with pytest.raises(ValueError, match=r"EPICHead\.loss: the rotation needs the images' pos"):
        head.loss(torch.nn.functional.cross_entropy, head.classify(units), batch)


def test_weights_of_another_size_are_refused():
    head = EPICHead(4, 2)
    with pytest.raises(ValueError, match=r"weight is \(2, 3\) and bias none, must be \(2, 4\)"):
        head.start_weights(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"weight is \(4,\), must be \[K, C\]"):
        EPICHead.from_linear(torch.zeros(4))
