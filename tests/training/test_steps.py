"""A training step: it waits for no device; its precision, its parts and its averages."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from infodisent.training.config import FitConfig
from infodisent.training.fit import fit_head, new_head
from infodisent.training.meter import Meter
from infodisent.training.steps import Step, Tools
from infodisent.training.tracking import csv_table, write_history
from infodisent.training.validation import best_epoch

from .test_course import build, interrupted_after, rows, same  # noqa: F401  (a fixture)

CONFIG = FitConfig(epochs=3, batch_size=10, lr=0.05, rotation_lr=0.01)
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
}
"""Operations whose result, or its size, the processor has to wait for."""


class Reads(TorchDispatchMode):
    """What has been waited for."""

    def __init__(self):
        super().__init__()
        self.seen, self.listens = [], True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = func is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if self.listens and (func in READS or mask):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """The same of what a tensor on the CPU answers without an operation.

    ``one_hot`` looks at its labels on a CPU, and nowhere else where it is told how many there are.
    """

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if self.reads.listens and name in ("tolist", "numpy", "item", "__bool__", "__float__"):
            self.reads.seen.append(name)
        self.reads.listens, before = self.reads.listens and name != "one_hot", self.reads.listens
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.reads.listens = before


def reads_of_steps(head, store, config, monkeypatch):
    """What every step has waited for; readings of the figures are left out."""
    found = []
    step, move = Step.__call__, Tools.move

    def counted(self, *arguments):
        with Reads() as reads, Calls(reads):
            self.tools.reads = reads
            figures = step(self, *arguments)
        found.append(reads.seen)
        return figures

    def moved(self):
        # the usual optimiser's count of steps is on the CPU in any case, and read there
        self.reads.listens = self.scaler.is_enabled()
        move(self)
        self.reads.listens = True

    monkeypatch.setattr(Step, "__call__", counted)
    monkeypatch.setattr(Tools, "move", moved)
    fit_head(head, store, config, progress=False)
    return found


@pytest.mark.parametrize(
    ("method", "options", "amp"),
    [
        ("infodisent", {}, "fp16"),
        ("protopnet", {"per_class": 2, "dimension": 4}, "none"),
        ("epic", {"images": 6}, "none"),
        pytest.param("protopool", {}, "bf16", marks=pytest.mark.slow),
        pytest.param("tree", {"depth": 2}, "none", marks=pytest.mark.slow),
        pytest.param("prototree", {"depth": 2}, "fp16", marks=pytest.mark.slow),
    ],
)
def test_a_step_waits_for_no_device(rows, monkeypatch, method, options, amp):  # noqa: F811
    config = dataclasses.replace(CONFIG, epochs=1, ema=0.9, amp=amp, accumulate=2)
    found = reads_of_steps(build(method=method, **options), rows, config, monkeypatch)
    assert len(found) > 2
    assert found == [[]] * len(found)


def test_figures_are_read_every_few_steps_and_a_loss_must_be_a_number(rows):  # noqa: F811
    seen = []
    figures = Meter("train", torch.device("cpu"), lambda *told: seen.append(told), "here", 2)
    for loss in (1.0, 3.0, 5.0):
        figures.add(torch.tensor([loss, 2.0, 0.5]), 4)
    assert seen == [("train", 2, 2.0, 0.5)]
    figures.read()
    assert seen[1:] == [("train", 1, 5.0, 0.5)]
    assert (figures.loss, figures.right) == (36.0, 6.0)
    figures.add(torch.tensor([torch.nan, 0.0, 0.0]), 4)
    with pytest.raises(ValueError, match="loss is nan in here"):
        figures.add(torch.tensor([1.0, 0.0, 0.0]), 4)
    head = build()
    head.loss = lambda objective, logits, batch: logits.sum() * torch.nan
    with pytest.raises(ValueError, match=r"the loss is nan in epoch 1; lower lr \(0\.05\) or rot"):
        fit_head(head, rows, CONFIG, progress=False)


SETTINGS = {
    "bf16": {"amp": "bf16"},
    "fp16": {"amp": "fp16", "validation": 0.25},
    "parts": {"accumulate": 3},
    "average": {"ema": 0.9, "validation": 0.25, "patience": 20},
    "schedule": {"schedule": "linear", "warmup": 0.3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_with_an_option_it_is_the_uninterrupted_run(tmp_path, rows, monkeypatch, name):  # noqa: F811
    config = dataclasses.replace(CONFIG, **SETTINGS[name])
    lie = {"parametrization": "lie"} if name == "average" else {}
    whole, state = build(**lie), tmp_path / "state.safetensors"
    expected = fit_head(whole, rows, config, progress=False)
    for stop in (2, 3):
        state.unlink(missing_ok=True)
        with interrupted_after(monkeypatch, stop):
            fit_head(build(**lie), rows, config, state=state, progress=False)
        resumed = build(5, **lie)
        assert fit_head(resumed, rows, config, state=state, progress=False) == expected
        assert same(resumed, whole)
    plain = build(**lie)
    fit_head(plain, rows, CONFIG, progress=False)
    assert not same(plain, whole)  # the option does something
    option = next(iter(SETTINGS[name]))
    with pytest.raises(ValueError, match=f"{option} was .*, is "):
        fit_head(build(**lie), rows, CONFIG, state=state, progress=False)


@pytest.mark.parametrize(
    ("method", "options", "loss"),
    [
        ("infodisent", {}, {}),  # a mean: the parts' gradients are added up
        ("infodisent", {}, {"class_weights": (1, 3)}),  # divided by the batch's weights
        ("protopnet", {"per_class": 2, "dimension": 4}, {}),  # reads the units
        # learns from all logits
        pytest.param("prototree", {"depth": 2}, {}, marks=pytest.mark.slow),
    ],
)
def test_parts_of_a_batch_are_the_batch(rows, method, options, loss):  # noqa: F811
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=16, **loss)
    heads = [new_head(24, 2, 0, method=method, **options).double() for _ in range(2)]
    rows._shards[0] = rows._shards[0].double()
    histories = [
        fit_head(head, rows, dataclasses.replace(config, accumulate=parts), progress=False)
        for head, parts in zip(heads, (1, 5), strict=True)
    ]
    for name, value in heads[0].state_dict().items():
        torch.testing.assert_close(heads[1].state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert histories[1][0]["loss"] == pytest.approx(histories[0][0]["loss"], rel=1e-6)
    assert histories[1][0]["accuracy"] == histories[0][0]["accuracy"]


def test_no_rotation_is_computed_before_an_epoch(rows, monkeypatch):  # noqa: F811
    head, modes = new_head(rows.channels, len(rows.classes), 0), []
    monkeypatch.setattr(head.rotation, "train", lambda mode=True: modes.append(mode))
    fit_head(head, rows, FitConfig(epochs=4), progress=False)
    assert modes.count(False) == 2  # where the stage begins, and after the last epoch


def test_the_average_is_the_formula_and_meets_constraints(rows, monkeypatch):  # noqa: F811
    config = dataclasses.replace(CONFIG, epochs=2, ema=0.8)
    seen, head = [], build()
    move = Tools.move

    def moved(self):
        if not seen:
            seen.append(head.fc.weight.detach().double())
        move(self)

    after = type(head).after_step

    def stepped(self):
        after(self)
        seen.append(self.fc.weight.detach().double())

    monkeypatch.setattr(Tools, "move", moved)
    monkeypatch.setattr(type(head), "after_step", stepped)
    fit_head(head, rows, config, progress=False)
    steps, average = 2 * 4, seen[0]
    for t in range(1, steps + 1):
        decay = min(0.8, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * seen[t]
    torch.testing.assert_close(head.fc.weight.detach().double(), average, rtol=1e-5, atol=1e-7)
    assert (head.fc.weight >= 0).all()


def test_the_average_of_a_moving_base_is_a_rotation(rows):  # noqa: F811
    config = dataclasses.replace(CONFIG, ema=0.9, rotation_lr=0.1)
    head = build(parametrization="lie")
    fit_head(head, rows, config, progress=False)
    base = head.rotation.base.double()
    assert (base.mT @ base - torch.eye(24, dtype=torch.float64)).abs().max() < 1e-5
    plain = build(parametrization="lie")
    fit_head(plain, rows, dataclasses.replace(config, ema=0), progress=False)
    assert (base - plain.rotation.base).abs().max() > 1e-3


def test_rates_follow_the_schedule(rows, monkeypatch):  # noqa: F811
    rates = []
    step = torch.optim.AdamW.step

    def stepped(self, *arguments):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    config = dataclasses.replace(CONFIG, epochs=5, schedule="linear", warmup=0.2)
    fit_head(build(), rows, config, progress=False)
    expected = [(1 - t / 20) * min(1, (t + 1) / 4) for t in range(20)]
    assert [lr for lr, _ in rates] == pytest.approx([0.05 * part for part in expected])
    assert [lr for _, lr in rates] == pytest.approx([0.01 * part for part in expected])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"amp": "float16"}, "amp is 'float16', allowed are none, bf16, fp16"),
        ({"accumulate": 0}, "accumulate is 0, must be >= 1"),
        ({"accumulate": 300}, r"accumulate is 300, must be <= batch_size \(256\)"),
        ({"ema": 1.0}, r"ema is 1.0, must be in \[0, 1\)"),
        ({"schedule": "step"}, "schedule is 'step', allowed are method, cosine"),
        ({"warmup": -0.1}, r"warmup is -0.1, must be in \[0, 1\)"),
    ],
)
def test_what_is_not_allowed_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**bad)


def test_a_stage_that_minimises_something_else_is_not_stopped(rows):  # noqa: F811
    """EPIC: the classifier's training may stop early, the rotation's has no validation loss."""
    config = dataclasses.replace(CONFIG, epochs=12, lr=1.0, validation=0.25, patience=2)
    head = build(method="epic", images=6)
    history = fit_head(head, rows, config, progress=False)
    classifier = len(history) - 12
    best = best_epoch(history[:classifier])
    assert classifier == best + 1 + 2 < 12
    after = history[classifier:]
    assert all(
        e["validation_loss"] == pytest.approx(history[best]["validation_loss"], rel=1e-4)
        for e in after
    )


def test_it_resumes_behind_a_stage_that_stopped_early(tmp_path, rows, monkeypatch):  # noqa: F811
    config = dataclasses.replace(CONFIG, epochs=8, lr=1.0, validation=0.25, patience=2)
    whole = build(method="epic", images=6)
    expected = fit_head(whole, rows, config, progress=False)
    first = len(expected) - 8
    state = tmp_path / "state.safetensors"
    for stop in (first - 1, first, first + 2):
        state.unlink(missing_ok=True)
        with interrupted_after(monkeypatch, stop):
            fit_head(build(method="epic", images=6), rows, config, state=state, progress=False)
        resumed = build(3, method="epic", images=6)
        assert fit_head(resumed, rows, config, state=state, progress=False) == expected
        assert same(resumed, whole)
    longer = dataclasses.replace(config, epochs=10)
    with pytest.raises(ValueError, match="epochs was 8, is 10"):  # the first stage, too
        fit_head(build(method="epic", images=6), rows, longer, state=state, progress=False)


def test_held_out_images_decide_nothing(rows):  # noqa: F811
    rows.splits[::3] = ["val"] * len(rows.splits[::3])
    config = dataclasses.replace(CONFIG, epochs=20, lr=1.0, validation=0.25, patience=2)
    heads, histories = [build(), build()], []
    for head in heads:
        histories.append(fit_head(head, rows, config, progress=False))
        rows._shards[0][rows.indices("val")] = torch.nan
    assert histories[0] == histories[1]
    assert same(*heads)


def test_a_few_steps_are_profiled(tmp_path, rows):  # noqa: F811
    fit_head(build(), rows, CONFIG, profile=tmp_path / "profile", progress=False)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert any("infodisent::" in event.get("name", "") for event in trace["traceEvents"])
    steps = {
        e["name"] for e in trace["traceEvents"] if e.get("name", "").startswith("ProfilerStep")
    }
    assert steps == {f"ProfilerStep#{n}" for n in range(4, 10)}
    assert "Self CPU" in (tmp_path / "profile" / "table.txt").read_text()


def test_the_table_of_a_run_that_goes_on(tmp_path, rows, monkeypatch):  # noqa: F811
    state, table = tmp_path / "state.safetensors", tmp_path / "training.csv"
    options = {"state": state, "callbacks": [csv_table(table)], "progress": False}
    with interrupted_after(monkeypatch, 2):
        fit_head(build(), rows, CONFIG, **options)
    assert table.read_text().count("\n") == 2  # killed before the second epoch was written
    history = fit_head(build(), rows, CONFIG, **options)
    lines = table.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "3"]
    write_history(table, history)
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["epoch", *"123"]
    csv_table(table)(2, history[0])  # what came after is of another run
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["epoch", *"12"]
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no column epoch"):
        csv_table(table)(2, history[0])
