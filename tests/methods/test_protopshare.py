"""ProtoPShare's merge, ProtoPNet's pruning and its rounds, against loops."""

from __future__ import annotations

import pytest
import torch

import infodisent
from infodisent.methods.protopnet import ProtoPNetHead
from infodisent.methods.protopshare import ProtoPShareHead, merge_order
from infodisent.methods.stages import LoopOptions
from infodisent.training.fit import FitConfig, fit_head, new_head


def batches_of(maps, labels):
    numbers = torch.arange(len(maps))
    parts = [slice(0, 5), slice(5, len(maps))]
    return lambda: ((maps[part], labels[part], numbers[part]) for part in parts)


def published_merge(distance, threshold):
    """The rule as the paper's code has it: in order, each left one takes the left ones near it."""
    left, taken = list(range(len(distance))), {}
    for unit in range(len(distance)):
        if unit in left:
            others = [m for m in left if m != unit and distance[unit, m] <= threshold]
            taken[unit] = others
            left = [m for m in left if m not in others]
    return taken


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("by", ["data", "vectors"])
def test_merge_is_the_published_rule(similarity, by):
    torch.manual_seed(3)
    head = ProtoPShareHead(
        6, 4, per_class=3, dimension=5, similarity=similarity, by=by, share=0.4
    ).double()
    torch.nn.init.normal_(head.last.weight)
    maps, labels = torch.randn(12, 7, 6, dtype=torch.float64), torch.arange(12) % 4
    weight, owners = head.last.weight.detach().clone(), head.owners.clone()
    if by == "vectors":
        seen = head.prototypes.detach()
    else:
        seen = head.compare(head.embed(maps, "NLC")).value.mT  # [M, N]
    distance = torch.cdist(seen, seen).square().fill_diagonal_(torch.inf)
    threshold = distance.amin(1).sort().values[round(0.4 * 12) - 1]
    head.merge(batches_of(maps, labels))
    gone = 0
    taken = published_merge(distance, threshold + 1e-9)
    for unit, others in taken.items():
        together = [unit, *others]
        torch.testing.assert_close(head.last.weight[:, unit], weight[:, together].sum(1))
        assert torch.equal(head.owners[unit], owners[together].any(0))
        assert head.kept[unit]
        assert not head.kept[others].any()
        assert (head.class_weights()[:, others] == 0).all()
        gone += len(others)
    assert gone == 12 - int(head.kept.sum()) > 0
    logits = head.pool(maps, input_fmt="NLC").pooled @ head.class_weights().mT
    torch.testing.assert_close(head(maps, input_fmt="NLC"), logits)
    assert f"{gone} of 12 prototypes were dropped" in " ".join(head.notices())


@pytest.mark.parametrize("keep", [1, 5, 12, 40])
def test_so_many_stay(keep):
    torch.manual_seed(3)
    head = ProtoPShareHead(6, 4, per_class=3, dimension=5, by="vectors", keep=keep)
    head.merge(lambda: iter(()))
    assert 1 <= int(head.kept.sum()) <= keep
    if keep >= 12:
        assert head.kept.all()


def test_order_decides_who_takes_whom():
    distance = torch.full((4, 4), 9.0).fill_diagonal_(torch.inf)
    for a, b in ((0, 2), (2, 3)):  # 0 takes 2, so 2 takes 3 no more
        distance[a, b] = distance[b, a] = 1.0
    assert merge_order(distance, 1.0) == [[2], [], None, []]


def test_pruning_counts_own_images_among_the_nearest():
    torch.manual_seed(3)
    head = ProtoPNetHead(6, 3, per_class=4, dimension=5, pruning=True).double()
    maps, labels = torch.randn(24, 7, 6, dtype=torch.float64), torch.arange(24) % 3
    seen = head.compare(head.embed(maps, "NLC")).value  # [N, M] cosines
    head.prune(batches_of(maps, labels))
    for m in range(12):
        closest = seen[:, m].topk(6).indices
        assert bool(head.kept[m]) == (int((labels[closest] == m // 4).sum()) >= 3)
    assert 0 < int(head.kept.sum()) < 12
    assert (head.class_weights()[:, ~head.kept] == 0).all()


def test_rounds_and_stages():
    head = ProtoPNetHead(6, 3, projections=3, pruning=True, dimension=4)
    names = [stage.name for stage in head.stages(LoopOptions())]
    assert names == [
        "prototypes", "prototypes 2", "prototypes 3", "last layer", "last layer after pruning",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("protopshare", {"keep": 6, "pruning": True}),
        ("protopnet", {"pruning": True, "projections": 2}),
    ],
)
def test_trains_and_is_saved(store, tmp_path, method, options):
    head = new_head(store.channels, 2, 0, method=method, per_class=4, **options)
    history = fit_head(head, store, FitConfig(epochs=8, batch_size=8), progress=False)
    assert history[-1]["accuracy"] > 0.9
    assert not head.unprojected.any()
    dropped = ~head.kept
    assert (head.last.weight[:, dropped] * head.kept[dropped] == 0).all()
    if method == "protopshare":
        assert 1 <= int(head.kept.sum()) <= 6
    model = infodisent.attach("test_resnet", 2, method=method, **options)
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors").model.head
    assert again.options() == model.head.options()


def test_multilabel_starts_at_the_log_odds():
    head = ProtoPNetHead(6, 3, bias=True)
    head.start_offsets(torch.tensor([0.5, -1.0, 2.0]))
    assert head.offsets(torch.tensor([2, 0])).tolist() == [2.0, 0.5]


BAD = {
    "share": ({"share": 1.0}, "share is 1.0, must be in"),
    "keep": ({"keep": 0}, "keep is 0"),
    "by": ({"by": "x"}, "by is 'x'"),
    "projections": ({"projections": 0}, "projections is 0"),
    "pruning": ({"pruning": 1}, "pruning is 1, allowed are True and False"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"ProtoPShareHead: {message}"):
        ProtoPShareHead(**{"in_features": 4, "num_classes": 2, **change})
