"""Where a method loses: on divisions of the training images, with or without the mean pixel."""

from __future__ import annotations

import sys

import torch

from benchmarks import method_losses
from benchmarks.method_losses import BestPixelPool, Division
from infodisent.methods.pipnet import PIPNetHead
from infodisent.methods.protopool import ProtoPoolHead


def test_held_out_images_of_the_store_are_not_looked_at(store):
    train, held = Division(store, 0).parts
    together = torch.cat([train, held]).sort().values
    assert len(held)
    assert torch.equal(together, store.indices("train").sort().values)


def test_best_pixels_alone_are_the_largest_cosines():
    torch.manual_seed(0)
    head, x = ProtoPoolHead(6, 3, pool_size=7, slots=2, dimension=5), torch.randn(4, 6, 3, 3)
    rows = head.add_on(x.flatten(2).mT)
    cosine = (
        torch.nn.functional.normalize(rows, dim=2)
        @ torch.nn.functional.normalize(head.prototypes).mT
    )
    head.__class__ = BestPixelPool
    torch.testing.assert_close(head.pool(x).pooled, cosine.amax(1).clamp_min(0))


def test_every_stage_and_the_regressions_are_told(store, monkeypatch, capsys):
    options = "epochs=1,batch_size=8,slots=2"
    monkeypatch.setattr(
        sys, "argv", ["", str(store.path), "protopool", "--option", options, "--best-pixel-alone"]
    )
    method_losses.main()
    told = capsys.readouterr().out
    for name in ("regression, average", "before last layer", "trained", "regression, its units"):
        assert f"| {name} | " in told


def test_presences_of_pipnet_are_told_with_and_without_those_that_do_not_count(store):
    """Of 30 prototypes that all have 1/30 at every pixel none counts; of one alone, that one."""
    division = Division(store, 0)
    right = [(store.labels[part] == 0).float().mean() for part in division.parts]
    for prototypes, counting in ((30, 0), (1, 1)):
        head = PIPNetHead(store.channels, 2, num_prototypes=prototypes).eval()
        with torch.no_grad():
            head.layer.weight.zero_()
            head.weight.fill_(1)[1] = 0.5
        pooled = [torch.full((len(part), prototypes), 1 / prototypes) for part in division.parts]
        told = division.of_presences(head, pooled)
        assert told["presences that count, an image"] == f"{counting:.1f} | {counting:.1f}"
        assert told["trained, every presence counts"] == f"{right[0]:.1%} | {right[1]:.1%}"
