"""Several processes that do one job together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from infodisent import ops, ranks
from infodisent.backends import use_backend
from infodisent.evaluation.accuracy import linear_probe
from infodisent.evaluation.logistic import fit_logistic, standardise
from infodisent.methods import build_head
from infodisent.methods.stages import part_of
from infodisent.nn import Rotation
from infodisent.ops import divided
from infodisent.shared_memory import Meeting
from infodisent.training.calibration import training_step
from tests.ranks import torchrun
from tests.training.stores import MemoryStore


class Step(nn.Module):
    """Rows to a loss that is no mean over rows, with a parameter on either side of `gathered`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
        self.behind = nn.Parameter(torch.randn(4, 2, dtype=torch.float64))

    def forward(self, rows):
        whole = ranks.gathered(rows @ self.before)
        logits = whole @ self.behind
        return logits.square().sum(0).tanh().sum() + whole.std() + self.before.square().sum()


def gradients(count):
    torch.manual_seed(1)
    rows, step = torch.randn(count, 3, dtype=torch.float64), Step()
    loss = step(ranks.piece(rows))
    loss.backward()
    ranks.average_gradients(step.parameters())
    return [loss.detach(), step.before.grad, step.behind.grad]


def known_sizes(rows):
    """Pieces of a whole of a known size are gathered without asking for sizes."""
    plain = ranks._sizes
    ranks._sizes = None  # to call it would fail
    assert torch.equal(ranks.gathered(ranks.piece(rows), len(rows)), rows)
    ranks._sizes = plain
    with pytest.raises(ValueError, match="of 5000 this process has"):
        ranks.gathered(rows, 5000)


def check_everything():
    """What every process of several does."""
    ranks.start()
    ranks.start()  # again: nothing happens
    n, me = ranks.world(), ranks.rank()
    assert n > 1
    assert ranks.leads() == (me == 0)
    everyones = ranks.everyones(list(ranks.share(range(10))))
    assert sorted(i for part in everyones for i in part) == list(range(10))
    assert everyones[1] == list(range(1, 10, n))
    assert ranks.told(f"rank {me}") == "rank 0"
    assert torch.equal(ranks.total(torch.tensor([me, 1])), torch.tensor([n * (n - 1) // 2, n]))
    for count in (9, 1):  # fewer rows than processes, too
        rows = torch.arange(2 * count).view(count, 2)
        assert torch.equal(ranks.gathered(ranks.piece(rows)), rows)
        known_sizes(rows)
        together = gradients(count) if count > 1 else []
        if together:
            torch.save(together, f"{sys.argv[1]}/{me}.pt")
    layouts(me)
    passes()
    there = divided.workspace
    for found in (there, lambda a: None):  # by memory they share, and by messages
        divided.workspace = found
        rotations()
    divided.workspace = there
    for count in (41, 3):  # of four processes one has none of three images
        torch.save(regression(torch.arange(count)), f"{sys.argv[1]}/{me}-of-{count}.pt")
    if n > 2:  # it takes its time to import
        probes(me)
    ranks.barrier()
    ranks.stop()


def probe_data():
    """Maps with a classifier to find, and positions: the first are many, the second one a class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(60) % 3
    maps = torch.randn(60, 4, 6, generator=generator) + nn.functional.one_hot(labels, 6)[:, None]
    store = MemoryStore(maps, labels, "abc")
    return store, ((torch.arange(41), torch.arange(41, 60)), (torch.arange(3), torch.arange(2)))


def regression(positions):
    """Weights of the logistic regression on what all processes have of some images."""
    store, _ = probe_data()
    own = ranks.piece(positions)
    rows = store.average(own)
    standardise(rows, len(own))
    layer = fit_logistic(rows, store.labels[own], 3, 0.1)
    return [layer.weight.detach(), layer.bias.detach()]


def probes(me):
    """The linear probe is divided: each reads its part of the images, and all have the figures."""
    store, samples = probe_data()
    read, plain = [], store.average
    store.average = lambda indices: (read.append(len(indices)), plain(indices))[1]
    found = [linear_probe(store, *sample).as_dict() for sample in samples]
    assert all(other == found for other in ranks.everyones(found))
    assert read[0] < 60 / ranks.world() + 2
    assert sum(sum(counts) for counts in ranks.everyones(read)) == 60 + 5
    if not me:
        Path(sys.argv[1], "probes.json").write_text(json.dumps(found))


def passes():
    """What each finds in its part of a pass is merged to what one finds in the whole."""
    generator = torch.Generator().manual_seed(3)
    maps, vectors = (torch.randn(*s, generator=generator) for s in ((11, 4, 3), (5, 3)))
    maps[7] = maps[2]  # the lower number of equals wins, wherever it was seen

    def batches():
        for at in torch.arange(11).split(2):
            yield maps[at], torch.zeros(len(at)), at

    whole = ops.best_pixels(batches(), vectors, k=3, vectors=True)
    own = [i for _, _, at in part_of(batches)() for i in at.tolist()]
    assert sorted(i for part in ranks.everyones(own) for i in part) == list(range(11))
    merged = ops.best_pixels(part_of(batches)(), vectors, k=3, vectors=True, gather=True)
    assert all(torch.equal(one, other) for one, other in zip(merged, whole, strict=True))
    # all but one have seen nothing, and have no vectors of their own
    seen = list(batches()) if ranks.rank() == ranks.world() - 1 else []
    merged = ops.best_pixels(seen, vectors, k=3, vectors=True, gather=True)
    assert all(torch.equal(one, other) for one, other in zip(merged, whole, strict=True))


def rotations():
    """U and its gradient are the exact ones, and the same bits in every process."""
    n, me = ranks.world(), ranks.rank()
    divided.DIVIDED_FROM = divided.DIVIDED_BY_MESSAGES_FROM = 1
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}
    for size, scale, backend, dtype in (
        (1, 1.0, "auto", torch.float32),
        (13, 1.0, "sparse", torch.float32),
        (33, 4.0, "sparse", torch.float64),
        (33, 9.0, "auto", torch.float32),  # squared more often than is kept
        (307, 0.3, "auto", torch.float32),  # a compiled product, where there is one
    ):
        generator = torch.Generator().manual_seed(size)
        a = scale / size**0.5 * torch.randn(size, size, generator=generator, dtype=dtype)
        grads = torch.randn(n, size, size, generator=generator, dtype=dtype)
        truth = a.double().requires_grad_()
        exact = torch.linalg.matrix_exp(truth - truth.mT)
        exact.backward(grads.double().mean(0))
        rotation = Rotation(size, dtype=dtype)
        rotation.A.data.copy_(a)
        rotation.divided = True
        calls = counted()
        with use_backend(backend):
            u = rotation()
            u.backward(grads[me])
        assert calls
        for ours, theirs in ((u, exact), (rotation.A.grad, truth.grad)):
            difference = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-3)
            assert difference < tolerance[dtype], (size, dtype, difference)
            for other in ranks.everyones(ours.detach()):
                assert torch.equal(other, ours)
        calls.clear()
        if ranks.leads():  # nobody else does: it would wait for ever if they did it together
            rotation.eval()()
        assert not calls
    calls = counted()
    for options in ({}, {"parametrization": "lie"}):
        calls.clear()
        apart = trained(options, 768)
        assert not calls
        together = trained(options, 1)
        assert len(calls) > 10
        assert all(same(other, together) for other in ranks.everyones(together))
        for name, value in apart.items():
            torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5, msg=name)
    ranks.exchange, Meeting.__call__ = PLAIN_EXCHANGE, PLAIN_MEETING


def trained(options, first):
    """Weights after three steps, the rotation divided from so many channels on."""
    before, divided.DIVIDED_FROM = divided.DIVIDED_FROM, first
    torch.manual_seed(0)
    head = build_head("infodisent", 12, 3, input_fmt="NLC", **options)
    maps = torch.randn(4 * ranks.world(), 5, 12)
    step = training_step(head)
    for _ in range(3):
        step(ranks.piece(maps))
    divided.DIVIDED_FROM = before
    return {name: value.clone() for name, value in head.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def counted():
    """What the processes exchange or wait for together, from now on; grows."""
    calls = []
    ranks.exchange = lambda *args: (calls.append(args), PLAIN_EXCHANGE(*args))[1]
    Meeting.__call__ = lambda *args: (calls.append(args), PLAIN_MEETING(*args))[1]
    return calls


PLAIN_EXCHANGE, PLAIN_MEETING = ranks.exchange, Meeting.__call__


def layouts(me):
    """Weights that one process has channels-last, and the others not."""
    weight = torch.zeros(2, 3, 2, 2).contiguous(
        memory_format=torch.contiguous_format if me else torch.channels_last
    )
    weight.requires_grad_().grad = torch.empty_like(weight).copy_(torch.arange(24).view(2, 3, 2, 2))
    ranks.average_gradients([weight])
    assert torch.equal(weight.grad.flatten(), torch.arange(24.0))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_are_one(processes, tmp_path):
    torchrun(processes, __file__, str(tmp_path))
    for rank in range(processes):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for ours, other in zip(gradients(9), theirs, strict=True):
            torch.testing.assert_close(other, ours)
        for count in (41, 3):
            theirs = torch.load(tmp_path / f"{rank}-of-{count}.pt", weights_only=True)
            for ours, other in zip(regression(torch.arange(count)), theirs, strict=True):
                torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-3)
    if processes > 2:
        store, samples = probe_data()
        theirs = json.loads((tmp_path / "probes.json").read_text())
        for figures, sample in zip(theirs, samples, strict=True):
            ours = linear_probe(store, *sample).as_dict()
            assert figures["accuracy"] == ours["accuracy"]
            assert figures["loss"] == pytest.approx(ours["loss"], rel=1e-3)


def test_alone_it_is_the_first_of_one():
    rows = torch.randn(3, 2)
    ranks.start()
    assert (ranks.world(), ranks.rank(), ranks.leads()) == (1, 0, True)
    assert ranks.gathered(rows) is rows
    assert torch.equal(ranks.piece(rows), rows)
    assert list(ranks.share([1, 2])) == [1, 2]
    assert (ranks.told(5), ranks.everyones(5)) == (5, [5])
    ranks.stop()


@pytest.mark.parametrize(
    ("size", "message"),
    [("2", "WORLD_SIZE '2', without RANK, MASTER_PORT: start"), ("x", "WORLD_SIZE 'x'")],
)
def test_an_environment_that_is_not_torchruns(monkeypatch, size, message):
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(RuntimeError, match=message):
        ranks.start()
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks.start()
    assert ranks.world() == 1


def test_who_waits_at_the_end_is_told_that_another_has_failed(monkeypatch):
    def closed():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(ranks.dist, "barrier", closed)
    with pytest.raises(ranks.RankError, match="rank 1: another process of this job has ended"):
        ranks.stop()


if __name__ == "__main__":
    check_everything()
