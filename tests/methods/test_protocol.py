"""A second method goes through the whole package without a line of the package knowing it."""

from __future__ import annotations

import pytest
import torch

import infodisent
from infodisent.data.images import scan_folder
from infodisent.explanations.local import explain, explain_many
from infodisent.explanations.prototypes import Prototypes, find_prototypes
from infodisent.files import read_tensors, write_tensors
from infodisent.methods import METHODS, build_head, check_options, method_class
from infodisent.methods.stages import LoopOptions
from infodisent.report.page import write_page
from infodisent.report.publish import report_run
from infodisent.training import fit as fitting
from infodisent.training.fit import FitConfig, fit_head, new_head
from infodisent.training.run import evaluate_run, fit, open_run
from infodisent.training.steps import Step

from .heads import PrototypeHead

CONFIG = FitConfig(epochs=5, batch_size=8, lr=0.05, rotation_lr=0.02)


AVERAGES = {"bcos", "epic"}
"""Methods whose units are means over pixels and not extremes."""


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(METHODS, PrototypeHead.method, PrototypeHead)
    monkeypatch.setattr(PrototypeHead, "started", [])


@pytest.fixture
def toy():
    torch.manual_seed(1)
    return infodisent.attach("test_resnet", 2, method="toy", per_class=2).eval()


@pytest.fixture(params=[*METHODS, PrototypeHead.method])
def head(request):
    """A head of every method, with weights that leave nothing out."""
    built = build_head(request.param, 12, 3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.3)
    return built.eval()


def test_evidence_is_that_of_the_logits(head):
    x = torch.randn(5, 12, 3, 4)
    with torch.no_grad():
        pool, logits = head.pool(x), head(x)
        units = torch.arange(head.num_features)
        assert all(t.shape == (5, head.num_features) for t in pool)
        assert torch.equal(pool.pooled, pool.pos - pool.neg)
        assert head.class_weights().shape == (3, head.num_features)
        torch.testing.assert_close(head.classify(pool.pooled), logits)
        torch.testing.assert_close(head(x, pre_logits=True), pool.pooled)
        for label in range(3):
            classes = torch.full((5,), label)
            parts = head.contributions(pool.pooled, classes)
            assert parts.shape == (5, head.num_features)
            scores = head.scores(logits)[:, label]
            torch.testing.assert_close(parts.sum(1) + head.offsets(classes), scores)
        for i in range(5):
            rows = head.maps(x[i].flatten(1).mT, units)
            assert rows.shape == (12, head.num_features)
            value = rows.mean(0) if head.method in AVERAGES else rows.amax(0)
            torch.testing.assert_close(value.clamp_min(0), pool.pos[i])
            placed = pool.pos_index[i] >= 0
            assert torch.equal(rows.argmax(0)[placed], pool.pos_index[i][placed].long())


def test_description_rebuilds_the_head(head):
    again = build_head(head.method, 12, 3, **head.layout(), **head.options())
    assert again.options() == head.options()
    assert set(head.options()) <= set(head.option_names())
    again.load_state_dict(head.state_dict())
    x = torch.randn(2, 12, 2, 2)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), head(x))
    head.reset(4)
    assert head(x).shape == (2, 4)
    with pytest.raises(ValueError, match="one pool only"):
        head.reset(4, pool_type="avg")


def test_stages_name_parameters_of_the_head(head):
    known = {id(p) for p in head.parameters()}
    stages = head.stages(LoopOptions())
    assert stages
    for stage in stages:
        assert stage.parameters()
        assert {id(p) for p in stage.parameters()} <= known


def test_what_does_not_exist_is_refused_before_anything_is_built(monkeypatch):
    from infodisent import classifier

    monkeypatch.setattr(classifier, "read_backbone", lambda *a, **k: pytest.fail("was built"))
    with pytest.raises(ValueError, match=r"is 'protopnot', allowed are infodisent, .*, toy"):
        infodisent.attach("test_resnet", 2, method="protopnot")
    with pytest.raises(TypeError, match=r"toy has no option rotate; its options are per_class"):
        infodisent.attach("test_resnet", 2, method="toy", rotate=False)
    with pytest.raises(TypeError, match="infodisent has no option per_class"):
        check_options("infodisent", {"per_class": 1})
    with pytest.raises(ValueError, match="allowed are"):
        method_class("")


def test_run_evaluate_explain_report(tmp_path, image_folder, toy):
    images = scan_folder(image_folder)
    run = fit(toy, images, tmp_path / "run", CONFIG, keep=2, progress=False)
    assert [row["head"] for row in run.metrics["rows"]] == [
        "linear probe", "Toy prototypes", "one each",
    ]  # fmt: skip
    assert (run.metrics["method"], run.metrics["unit"]) == ("toy", "prototype")
    losses = [epoch["loss"] for epoch in run.metrics["history"]]
    assert len(losses) == 3 + 5
    assert losses[-1] < losses[3]
    assert PrototypeHead.started == ["prototypes", "last layer"] * 2

    loaded, prototypes, _ = open_run(tmp_path / "run")
    assert isinstance(loaded.model.head, PrototypeHead)
    assert prototypes.channels == loaded.model.head.num_features == 4
    assert (prototypes.neg_image == -1).all()
    assert evaluate_run(tmp_path / "run")["rows"][0] == run.metrics["rows"][1]
    other = evaluate_run(tmp_path / "run", image_folder, progress=False)
    assert other["rows"][0]["head"] == "Toy prototypes"

    page = report_run(run, count=4, progress=False)
    assert page.stat().st_size > 10_000
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 4


def test_explanation_of_weights_of_either_sign(tmp_path, image_folder, toy, store):
    fit_head(toy.head, store, CONFIG, progress=False)
    file = next((image_folder / "red").glob("*.png"))
    evidence = explain(toy, file, top=9, top_opposing=9)
    assert evidence.unit == "prototype"
    assert evidence.channels == 4
    assert abs(evidence.total - evidence.logit) <= 1e-3
    assert evidence.opposing, "a toy prototype of the other class counts against"
    for unit in evidence.shown:
        assert unit.side == 1  # there is no other side, whatever the weight's sign
        assert unit.sign == (1 if unit.weight >= 0 else -1)
        assert unit.neg_box is None
        assert unit.box == unit.pos_box is not None
        assert torch.equal(unit.heat, unit.pos_heat)
        assert unit.heat.max() == 1
    prototypes = find_prototypes(toy.head, store, k=2, progress=False)
    prototypes.save(tmp_path / "p.safetensors")
    again = Prototypes.load(tmp_path / "p.safetensors")
    explanations = explain_many(toy, [file], progress=False)
    write_page(tmp_path / "page.html", explanations, again)


def test_checkpoint_records_the_method(tmp_path, toy):
    path = tmp_path / "m.safetensors"
    infodisent.save(path, toy)
    _, metadata = read_tensors(path)
    assert (metadata["format"], metadata["spec"]["method"]) == (2, "toy")
    model = infodisent.load(path).model
    assert model.spec == toy.spec
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), toy(x))
    for change, message in (
        ({"method": "gone"}, "method is 'gone', allowed are infodisent, .*, toy"),
        ({"head_options": {"nonneg": "abs"}}, "asks for nonneg"),
    ):
        tensors, metadata = read_tensors(path)
        metadata["spec"] |= change
        edited = tmp_path / "edited.safetensors"
        write_tensors(edited, {k: v.clone() for k, v in tensors.items()}, metadata)
        with pytest.raises(ValueError, match=message):
            infodisent.load(edited)


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_interrupted_training_goes_on_in_its_stage(tmp_path, store, monkeypatch, stop):
    def build():
        return new_head(store.channels, 2, 0, method="toy", drop_rate=0.2)

    whole = build()
    expected = fit_head(whole, store, CONFIG, progress=False)
    assert PrototypeHead.started == ["prototypes", "last layer"]
    plain, state = fitting.save_state, tmp_path / "state.safetensors"

    def dies(path, run, head, optimizer, history):
        plain(path, run, head, optimizer, history)
        if len(history) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_head(build(), store, CONFIG, state=state, progress=False)
    monkeypatch.setattr(fitting, "save_state", plain)
    PrototypeHead.started.clear()
    resumed = build()
    assert fit_head(resumed, store, CONFIG, state=state, progress=False) == expected
    assert PrototypeHead.started == (["last layer"] if stop <= 3 else [])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    other = new_head(store.channels, 2, 0, drop_rate=0.2)
    with pytest.raises(ValueError, match="other method"):
        fit_head(other, store, CONFIG, state=state, progress=False)


def test_a_stage_trains_its_own_parameters_only(store, monkeypatch):
    head = new_head(store.channels, 2, 0, method="toy")
    last = head.last.weight.detach().clone()
    seen = []
    plain = Step.__call__

    def step(self, done, positions, rows, units):
        seen.append((head.vectors.requires_grad, head.last.weight.requires_grad, rows is not None))
        if seen[-1][0]:
            assert torch.equal(head.last.weight, last)
        return plain(self, done, positions, rows, units)

    monkeypatch.setattr(Step, "__call__", step)
    fit_head(head, store, CONFIG, progress=False)
    assert set(seen) == {(True, False, True), (False, True, False)}
    assert all(p.requires_grad for p in head.parameters())
    assert not torch.equal(head.last.weight, last)
    norms = head.vectors.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))  # after_step
