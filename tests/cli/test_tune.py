"""`infodisent tune` between backends, with faked timings; what `doctor` says of it."""

from __future__ import annotations

import pytest
import torch

from infodisent import backends
from infodisent.backends import architectures, choices, selfcheck
from infodisent.backends.cuda import module as cuda
from infodisent.backends.table import BY_NAME
from infodisent.bench import contest
from infodisent.cli import doctor, tune

CPU = torch.device("cpu")
CONTESTANTS = {"sparse": ("sparse",)}


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(selfcheck, "machine", lambda device: "a GPU, versions")
    monkeypatch.setattr(cuda, "identity", lambda: "a module")
    choices.evidence.cache_clear()
    yield
    choices.evidence.cache_clear()


class Clock:
    """Seconds by how many works were made before the one that is timed."""

    def __init__(self, *seconds):
        self.seconds, self.works = seconds, []

    def captured(self, run):
        run()
        self.works.append(run)
        return run

    def __call__(self, run):
        return self.seconds[self.works.index(run)]

    @property
    def watch(self):
        return contest.Stopwatch(self.captured, self)


def compete(clock, **options):
    arguments = {"dtype": torch.float32, "device": CPU, "contestants": CONTESTANTS, **options}
    return contest.contest((12, 3, 3), 10, watch=clock.watch, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_contest(dtype):
    result, wrong = compete(Clock(1e-6, 3e-6), dtype=dtype)
    assert not wrong
    assert result.map == (str(dtype).removeprefix("torch."), 12, 9)
    assert result.batch == 10
    assert result.times == {"sparse": (pytest.approx(1.0), pytest.approx(3.0))}


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("rotate_pool", lambda p: p._replace(pos=1.01 * p.pos), "sparse: pos values"),
        ("rotate_pool", lambda p: p._replace(neg_index=0 * p.neg_index), "sparse: neg places"),
        ("rotate_pool_backward", lambda g: (g[0], 1.1 * g[1]), "sparse: dU is off"),
    ],
)
def test_what_is_wrong_does_not_compete(monkeypatch, name, spoil, message):
    sparse = type(BY_NAME["sparse"])
    plain = getattr(sparse, name)
    monkeypatch.setattr(sparse, name, lambda *a: spoil(plain(*a)))
    result, wrong = compete(Clock())
    assert result.times == {}
    assert message in wrong["sparse"]


def test_what_another_backend_serves_does_not_compete():
    result, wrong = compete(Clock(), contestants={"sparse": ("triton",)})
    assert result.times == {}
    assert "sparse: ran rotate_pool by sparse" in wrong["sparse"]


WORK = [((12, 3, 3), 8), ((12, 3, 3), 64), ((24, 2, 2), 8)]


@pytest.fixture
def timed(monkeypatch):
    """Faked times of both backends: cuda is faster at 12 channels; at 24 it is wrong."""
    asked = []

    def result(size, batch, dtype, device, contestants, watch):
        asked.append((size, batch, tuple(contestants)))
        of = choices.Map(str(dtype).removeprefix("torch."), size[0], size[1] * size[2])
        times = {"triton": (10.0, 30.0), "cuda": (8.0 + batch / 64, 29.0)}
        if size[0] == 24:
            del times["cuda"]
            return choices.Timing(of, batch, times), {"cuda": "pos values: off by 3"}
        return choices.Timing(of, batch, times), {}

    monkeypatch.setattr(contest, "contest", result)
    monkeypatch.setattr(contest, "stopwatch", lambda: None)
    monkeypatch.setattr(backends, "explain", lambda *a, **k: {"cuda": "ok", "triton": "ok"})
    return asked


def test_winners_are_kept(timed, capsys):
    tune.tune_backends(WORK, CPU, torch.bfloat16)
    assert timed == [(*work, ("triton", "cuda")) for work in WORK]
    text = " ".join(capsys.readouterr().out.split())
    assert "12x3x3 │ 64 │ 10.0, 30.0 │ 9.0, 29.0 │ cuda" in text
    assert "24x2x2 │ 8 │ 10.0, 30.0 │ wrong │ triton" in text
    assert "not timed: 24x2x2, 8: cuda: pos values: off by 3" in text
    assert "backends.json" in "".join(text.split())  # long paths are broken over lines
    found = choices.evidence(CPU, "a module")
    assert [(r.map.channels, r.least, r.most, r.backend) for r in found] == [
        (12, 8, 64, "cuda"),
        (24, 8, 8, "triton"),
    ]


def test_an_interrupted_tuning_keeps_what_it_has(timed, monkeypatch):
    kept = contest.contest

    def interrupted(size, *rest):
        if size[0] == 24:
            raise KeyboardInterrupt
        return kept(size, *rest)

    monkeypatch.setattr(contest, "contest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune.tune_backends(WORK, CPU, torch.bfloat16)
    assert len(choices.evidence(CPU, "a module")) == 1


def test_nothing_to_choose_between(monkeypatch, capsys):
    monkeypatch.setattr(backends, "explain", lambda *a, **k: {"cuda": "no CUDA module: no nvcc"})
    tune.tune_backends(WORK, CPU, torch.bfloat16)
    assert "auto has triton alone to take here, since cuda: no CUDA module" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not choices.cache_file().exists()


def test_doctor_tells_the_choice_and_why(timed, monkeypatch):
    assert doctor._choices() == [] or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "device", lambda name, plain=torch.device: plain("cpu"))
    (line,) = doctor._choices()
    assert "nobody has timed them on this kind of GPU: infodisent tune --only backends" in line
    tune.tune_backends(WORK, CPU, torch.bfloat16)
    lines = doctor._choices()
    assert lines[0] == "auto between triton and cuda:"
    assert lines[1] == (
        "  bfloat16 12x9, B 8 to 64: cuda (triton 10.0, cuda 9.0 µs at B 64), timed on this machine"
    )
    monkeypatch.setattr(backends, "explain", lambda *a, **k: {"cuda": "no such GPU"})
    assert doctor._choices() == []


def test_doctor_names_the_architecture(monkeypatch):
    if not torch.cuda.is_available():
        assert doctor._architecture() == [("GPU architecture", "none")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Abacus 9000")
    monkeypatch.setattr(architectures, "architecture", lambda _: ("sm_90", "Hopper"))
    assert doctor._architecture() == [
        ("GPU", "Abacus 9000"),
        ("GPU architecture", "sm_90 (Hopper)"),
        ("", architectures.knowledge("sm_90")),
    ]


def test_a_backend_that_cannot_serve_does_not_compete():
    result, wrong = compete(Clock(), contestants={"triton": ("triton",)})
    assert result.times == {}
    assert "triton" in wrong["triton"]
