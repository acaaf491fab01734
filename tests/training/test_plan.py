"""What a training would cost, from rates."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import infodisent
from infodisent.methods.rotations import turn_rotations
from infodisent.training import calibration
from infodisent.training.calibration import measure_rates, passes_of
from infodisent.training.fit import new_head
from infodisent.training.footprint import peak_bytes
from infodisent.training.plan import EVALUATIONS, Job, Passes, Rates, plan
from tests.cli.test_cli import run

GPU = Rates(
    decode=400, forward=2500, step=60_000, pool=150_000, probe=2e6, read=6e9, write=4e9, cores=16
)
IMAGENET = Job(
    train=1_281_167, held_out=50_000, channels=2048, pixels=49, classes=1000, original_classes=1000,
    workers=14,
)  # fmt: skip


def test_imagenet_is_read_from_a_fast_disk_in_under_a_minute():
    result = plan(IMAGENET, GPU)
    image = 2 * 2048 * 49
    assert result.store == 1_331_167 * (image + 2 * 1000)
    assert result.epoch == pytest.approx(1_281_167 * image / 6e9)  # no logits
    assert 40 < result.epoch < 60
    extraction, probe, training, *_ = result.stages
    assert (extraction.bound, probe.bound, training.bound) == ("backbone", "disk", "disk")
    assert extraction.seconds == pytest.approx(1_331_167 / 2500)
    assert probe.seconds == pytest.approx(EVALUATIONS * 1_281_167 / 2e6 + 1_331_167 * image / 6e9)
    assert training.seconds == pytest.approx(15 * result.epoch)
    assert result.seconds == sum(stage.seconds for stage in result.stages)


def test_more_devices_share_the_work_and_the_disk():
    one, eight = plan(IMAGENET, GPU), plan(Job(**{**vars(IMAGENET), "devices": 8}), GPU)
    assert eight.epoch == one.epoch  # the disk is the same
    parts = (one.stages[0].parts, eight.stages[0].parts)
    assert parts[1]["backbone"] == pytest.approx(parts[0]["backbone"] / 8)
    assert eight.stages[0].bound == "disk"  # eight backbones write faster than it takes
    assert eight.memory < one.memory


def test_on_a_processor_decoding_takes_from_the_backbone():
    rates = Rates(
        decode=100, forward=20, step=300, pool=900, probe=1e5, read=1e9, write=1e8, cores=2,
        shared=True,
    )  # fmt: skip
    job = Job(train=900, held_out=100, channels=512, pixels=49, classes=2, probe=False,
              compared=((Passes(),),))  # fmt: skip
    extraction, training, *_ = plan(job, rates).stages
    assert extraction.seconds == pytest.approx(1000 / 20 + 1000 / 100 / 2)
    # 4 steps an epoch: 30 epochs make 120 steps; twice, with and without rotation
    assert training.seconds == pytest.approx(2 * 30 * 900 / 300)
    assert training.bound == "head"


def test_what_comes_once_is_counted_once():
    rates = Rates(
        decode=100, forward=20, step=400, pool=900, probe=1e5, read=1e9, write=1e8, cores=2,
        shared=True, extract=10, extract_copies=5, extract_start=3, first_figures=2, step_start=0.5,
    )  # fmt: skip
    job = Job(train=450, held_out=50, channels=512, pixels=49, classes=2, epochs=4,
              stages=(Passes(views=2),), compared=((Passes(),),))  # fmt: skip
    extraction, probe, views, training, *_ = plan(job, rates).stages
    assert extraction.seconds == pytest.approx(3 + 500 / 10)
    assert views.seconds == pytest.approx(450 * 2 * 2 / 5)
    # the second batch of an epoch has 194 images and is no 194 / 256 of a full one
    short = 4 * (2 - 450 / 256) * 0.5
    assert training.seconds == pytest.approx(4 * 3 * 450 / 400 + 2 * short)
    without = plan(Job(**{**vars(job), "probe": False}), rates)
    assert without.stages[2] == training
    assert without.stages[3].seconds == pytest.approx(2 + 2 * 50 / 900)
    assert probe.parts["probe"] == pytest.approx(2 + EVALUATIONS * 450 / 1e5)
    with pytest.raises(ValueError, match="step_start is -1"):
        Rates(**{**vars(rates), "step_start": -1})


def test_a_calibrated_rotation_is_one_that_trained(tiny):
    before = tiny.head.rotation.A.detach().clone()
    turn_rotations(tiny.head, calibration.TRAINED)
    trained = tiny.head.rotation.A.detach()
    skew = trained - trained.T
    assert torch.linalg.matrix_norm(skew, 2) == pytest.approx(calibration.TRAINED, rel=1e-4)
    assert not before.any()


@pytest.mark.parametrize("wrong", [{"read": 0.0}, {"decode": float("nan")}, {"cores": 0}])
def test_rates_are_positive(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rates(**{**vars(GPU), **wrong})
    with pytest.raises(ValueError, match="train is 0"):
        Job(**{**vars(IMAGENET), "train": 0})


STAGES = (Passes(), Passes(20, fixed=True))


def test_units_of_a_fixed_pool_are_made_once():
    job = Job(
        train=1000, held_out=1, channels=8, pixels=4, classes=2, devices=2, epochs=5,
        probe=False, stages=STAGES, compared=(STAGES,),
    )  # fmt: skip
    rates = Rates(
        decode=1, forward=1, step=100, pool=400, probe=1, read=6400, write=1, fixed_step=5000
    )
    _, training, *_ = plan(job, rates).stages
    # an epoch over maps: 5 s of head on two devices, 10 s of disk; the units wait for the disk once
    assert training.parts == {
        "head": pytest.approx(2 * (5 * 5 + 1.25 + 20 * 0.2)),
        "disk": pytest.approx(2 * 6 * 10),
    }
    assert training.seconds == pytest.approx(2 * (5 * 10 + 10 + 20 * 0.2))
    assert training.bound == "disk"
    with pytest.raises(ValueError, match="fixed_step is 0"):
        Rates(**{**vars(GPU), "fixed_step": 0})


def test_a_head_that_is_compared_costs_what_its_own_stages_cost():
    job = Job(
        train=1000, held_out=1, channels=8, pixels=4, classes=2, epochs=5, probe=False,
        compared=((Passes(fixed=True),),),
    )  # fmt: skip
    rates = Rates(decode=1, forward=1, step=100, pool=400, probe=1, read=1e9, write=1,
                  fixed_step=5000)  # fmt: skip
    _, training, evaluation, _ = plan(job, rates).stages
    assert training.seconds == pytest.approx(5 * 10 + 1000 / 400 + 5 * 1000 / 5000)
    assert evaluation.seconds == pytest.approx(2 * 1 / 400)


def test_both_views_are_made_stored_read_and_stepped_on():
    stages = (Passes(10, views=2), Passes(3, fixed=True), Passes(views=2))
    one = Job(train=1000, held_out=100, channels=8, pixels=4, classes=2, epochs=5, probe=False,
              original_classes=7, batch_size=64, parameters=3)  # fmt: skip
    job = Job(**{**vars(one), "stages": stages, "view_pairs": 3})
    rates = Rates(decode=80, copy=50, forward=100, step=400, pool=800, probe=1, read=64e3,
                  write=1e6, fixed_step=5000)  # fmt: skip
    alone, both = plan(one, rates), plan(job, rates)
    assert both.store == alone.store + 2 * 3 * 1000 * (2 * 8 * 4)
    assert [stage.name for stage in both.stages[:3]] == ["extraction", "views", "training"]
    assert both.stages[0] == alone.stages[0]
    assert both.stages[1].parts["decoding"] == pytest.approx(6 * 1000 / 50)
    assert both.stages[1].parts["backbone"] == pytest.approx(6 * 1000 / 100)
    # an epoch of pairs: 5 s of head, 2 s of disk; the fixed stage pools the images themselves
    assert both.epoch == pytest.approx(2 * alone.epoch) == 5
    assert both.stages[2].parts == {
        "head": pytest.approx(10 * 5 + 1.25 + 3 * 0.2 + 5 * 5),
        "disk": pytest.approx(10 * 2 + 1 + 5 * 2),
    }
    assert (alone.memory, both.memory) == (5 * 64 * 64 + 84, 5 * 2 * 64 * 64 + 84)
    told = plan(job, Rates(**{**vars(rates), "step_bytes": 1000}))
    assert told.memory == 5 * 2 * 64 * 64 + 48 + 1000
    few = Job(**{**vars(job), "train": 10})
    assert (
        plan(few, rates).memory == 2 * 2 * 10 * 64 + 84
    )  # one batch an epoch, no larger than the set
    with pytest.raises(ValueError, match="views is 0"):
        Passes(views=0)


def test_a_step_on_pairs_takes_both(tmp_path, monkeypatch):
    """The rate is of maps, the loss is the method's own, of a stage that compares."""
    model = infodisent.attach("test_resnet", 3, method="pipnet")
    seen = []

    def pooled(self, maps, **options):
        seen.append(maps.shape[0])
        return self.pool(maps, input_fmt="NLC").pooled, {"alignment": maps.sum(2) * 0}

    def loss(self, objective, logits, batch):
        seen.append((len(batch.labels), batch.positions.tolist(), batch.stage))
        return logits.sum()

    monkeypatch.setattr(type(model.head), "training_pool", pooled)
    monkeypatch.setattr(type(model.head), "loss", loss)
    monkeypatch.setattr(calibration, "_rate", lambda run, count, *_: (run(), count)[1])
    rates = dict.fromkeys(("decode", "forward", "probe", "read", "write", "pool"), 1.0)
    job = Job(
        train=64, held_out=8, channels=model.num_features, pixels=4, classes=3, batch_size=16,
        stages=passes_of(model.head),
    )  # fmt: skip
    assert [stage.views for stage in job.stages] == [2, 1, 2]
    measured = measure_rates(model, job, tmp_path, given=rates)
    # a step of two images first, then those that are timed and whose memory is looked at, and
    # those that tell what a step takes whatever its maps
    few, whole = ([2 * n, (2 * n, list(range(n)), "pretraining")] for n in (2, 16))
    assert seen == [*few, *whole, *few, (16, list(range(16)), "classifier")]
    assert (measured.step, measured.fixed_step) == (32, 16)
    assert measured.copy == 32  # both views of each


def test_steps_are_timed_on_what_they_take(tmp_path, monkeypatch):
    """A fixed pool is in no step; maps of a float8 store are computed with as bfloat16."""
    seen = []
    model = infodisent.attach("test_resnet", 3, method="protoquant")
    head = type(model.head)
    pool, classify = head.pool, head.classify

    def pooled(self, maps, **options):
        seen.append(("pool", maps.dtype, len(maps)))
        return pool(self, maps, **options)

    def classified(self, units):
        seen.append(("classify", units.dtype, len(units)) if self.training else "other")
        return classify(self, units)

    monkeypatch.setattr(head, "pool", pooled)
    monkeypatch.setattr(head, "classify", classified)
    rates = dict.fromkeys(("decode", "forward", "probe", "read", "write"), 1.0)
    job = Job(
        train=64, held_out=8, channels=model.num_features, pixels=4, classes=3, batch_size=16,
        devices=2, item_bytes=1, stages=(Passes(fixed=True),),
    )  # fmt: skip
    measure_rates(model, job, tmp_path, given={**rates, "pool": 1.0}, seconds=0.01)
    assert set(seen) == {("classify", torch.float32, 16)}
    seen.clear()
    measure_rates(model, job, tmp_path, given={**rates, "step": 1.0}, seconds=0.01)
    assert ("pool", torch.bfloat16, 8) in seen


def test_rates_are_measured_and_leave_the_model_as_it_is(tmp_path):
    model = infodisent.attach("resnet18", 3, input_size=64)
    model.head = new_head(512, 3, 0, model.head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    job = Job(train=64, held_out=8, channels=512, pixels=4, classes=3, batch_size=16)
    said = []
    rates = measure_rates(
        model, job, tmp_path, given={"read": 5.0, "write": 6.0}, seconds=0.01, say=said.append
    )
    assert (rates.read, rates.write, rates.shared) == (5.0, 6.0, True)
    assert said == ["extract", "decode", "forward", "step", "pool", "probe"]
    assert rates.extract > 0
    assert rates.forward < rates.pool
    assert 0 <= rates.step_start <= 16 / rates.step
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path, monkeypatch, capsys):
    stated = ["decode=10", "forward=20", "step=30", "pool=40", "probe=50", "read=1e6", "write=1e6"]
    stated.append("fixed_step=70")
    given = [part for pair in stated for part in ("--rate", pair)]
    command = ["plan", "--images", "1000", "--classes", "5", "-b", "resnet18", "-o", tmp_path]
    code, text = run(monkeypatch, capsys, *command, *given)
    assert code == 0, text
    assert "54.3 MB" in text  # 1040 (512 * 49 * 2 + 2 * 1000 logits)
    assert "backbone" in text
    _, text = run(monkeypatch, capsys, *command, *given, "--json")
    values = json.loads(text)
    assert values["store"] == 1040 * (512 * 49 * 2 + 2000)
    assert values["rates"]["probe"] == 50
    assert values["job"]["stages"] == [{"epochs": None, "fixed": False, "views": 1}]
    assert [[stage["fixed"] for stage in other] for other in values["job"]["compared"]] == [[True]]
    command = ["plan", "--images", "9", "-b", "test_resnet", "--method", "protopnet", "--json"]
    command += ["-o", tmp_path, *given]
    code, text = run(monkeypatch, capsys, *command)
    assert code == 0, text
    assert json.loads(text)["job"]["stages"][-1]["fixed"] is True
    command[command.index("protopnet")] = "pipnet"
    code, text = run(monkeypatch, capsys, *command, "--rate", "copy=5", "--view-pairs", "3")
    assert code == 0, text
    values = json.loads(text)
    job = values["job"]
    one = 2 * job["channels"] * job["pixels"]
    assert values["store"] == 10 * (one + 2 * job["original_classes"]) + 9 * 2 * 3 * one
    code, text = run(monkeypatch, capsys, "plan", "--images", "9", "--rate", "speed=3")
    assert code == 2
    assert "names are decode" in text


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own figures are read")
def test_memory_of_a_run_is_beyond_what_there_was():
    held = torch.ones(1 << 22)
    used = peak_bytes(lambda: torch.ones(3 << 22).sum(), torch.device("cpu"))
    assert used == pytest.approx(12 << 22, rel=0.1)
    assert peak_bytes(lambda: None, torch.device("meta")) is None
    del held


def test_a_plan_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "ROOM", 1 << 22)
    write, read = calibration._disk(tmp_path / "runs" / "fit")
    assert min(write, read) > 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is not a folder; give one"):
        calibration._disk(tmp_path / "file")
