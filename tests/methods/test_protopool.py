"""ProtoPool against its formulas in float64, written as loops."""

from __future__ import annotations

import math

import pytest
import torch

import infodisent
from infodisent.methods.protopnet import EPSILON
from infodisent.methods.protopool import SHARPEST, ProtoPoolHead
from infodisent.methods.stages import LoopOptions, TrainingBatch
from infodisent.training.fit import FitConfig, fit_head, new_head


def small(similarity, **options):
    torch.manual_seed(2)
    head = ProtoPoolHead(6, 3, pool_size=7, slots=2, dimension=5, similarity=similarity, **options)
    return head.double().eval()


def compared(head, x):
    """Cosine or squared distance of every pixel and prototype, [B, P, M]."""
    rows = head.add_on(x.flatten(2).mT)
    columns = []
    for v in head.prototypes:
        if head.similarity == "cosine":
            columns.append((rows * v).sum(2) / (rows.norm(dim=2) * v.norm()))
        else:
            columns.append((rows - v).square().sum(2))
    return torch.stack(columns, 2)


def similar(head, value):
    if head.similarity == "cosine":
        return value
    return torch.log((value + 1) / (value + EPSILON))


def best_and_mean(head, x):
    every = compared(head, x)
    best = every.amax(1) if head.similarity == "cosine" else every.amin(1)
    return best, every.mean(1)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_logits_are_those_of_the_chosen_prototypes(similarity):
    head, x = small(similarity), torch.randn(4, 6, 2, 3, dtype=torch.float64)
    torch.nn.init.normal_(head.last.weight)
    best, mean = best_and_mean(head, x)
    focal = similar(head, best) - similar(head, mean)
    logits = torch.zeros(4, 3, dtype=torch.float64)
    for k in range(3):
        for owner in range(3):
            for slot in range(2):
                m = int(head.assignment[owner, slot].argmax())
                logits[:, k] += head.last.weight[k, 2 * owner + slot] * focal[:, m]
    torch.testing.assert_close(head(x), logits)
    pool = head.pool(x)
    torch.testing.assert_close(pool.pooled, focal)
    total = head.contributions(pool.pooled, torch.tensor([2, 0, 1, 2])).sum(1)
    torch.testing.assert_close(total, logits[torch.arange(4), [2, 0, 1, 2]])
    for _ in range(2):  # the published code draws its choices anew, and answers differently
        assert torch.equal(head(x), head(x))


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_loss_and_penalty_are_the_formulas(similarity):
    head = small(similarity, orthogonality=0.7)
    head.train()
    head.sharpness = 0.0  # choices are a plain softmax: nothing is drawn
    x, labels = torch.randn(4, 6, 2, 3, dtype=torch.float64), torch.tensor([2, 0, 1, 2])
    pooled, extra = head.training_pool(x)
    batch = TrainingBatch(labels, pooled, extra)
    share = head.assignment.softmax(-1)
    best, mean = best_and_mean(head, x)
    slots = []
    for k in range(3):
        for n in range(2):
            near, average = (best * share[k, n]).sum(1), (mean * share[k, n]).sum(1)
            slots.append(similar(head, near) - similar(head, average))
    logits = torch.stack(slots, 1) @ head.last.weight.mT
    wanted = torch.nn.functional.cross_entropy(logits, labels)
    got = head.loss(torch.nn.functional.cross_entropy, head.classify(pooled), batch)
    torch.testing.assert_close(got, wanted)

    distance = 1 - best if similarity == "cosine" else best
    cluster = separation = 0.0
    for row, label in zip(distance, labels.tolist(), strict=True):
        preferred = set(share[label].sum(0).topk(2).indices.tolist())
        cluster = cluster + min(row[m] for m in preferred) / 4
        separation = separation + min(row[m] for m in range(7) if m not in preferred) / 4
    alike = 0.0
    for k in range(3):
        for n in range(2):
            for other in range(2):
                a, b = head.assignment[k, n], head.assignment[k, other]
                alike = alike + (a @ b) / (a.norm() * b.norm())
    penalty = 0.8 * cluster - 0.08 * separation + 0.7 * (alike / 6 - 1)
    got = head.penalty(LoopOptions(), batch)
    torch.testing.assert_close(got, penalty)
    # and one that reaches every parameter of the stage
    for ours, theirs in zip(
        torch.autograd.grad(got, [head.prototypes, head.assignment], retain_graph=True),
        torch.autograd.grad(penalty, [head.prototypes, head.assignment]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_choices_become_sharp_as_published():
    head = small("cosine").train()
    stage = head.stages(LoopOptions())[0]
    for epoch, factor in ((0, 0.0), (2, math.sqrt(2 / 5)), (5, 1.0), (9, 1.0)):
        head.start_epoch(stage, epoch, 10, lambda: iter(()))
        assert head.sharpness == pytest.approx(SHARPEST * factor)
    assert (head.choices().amax(1) > 0.99).float().mean() > 0.5
    head.eval()
    assert torch.equal(head.choices().sum(1), torch.ones(6, dtype=torch.float64))
    assert set(head.choices().unique().tolist()) == {0.0, 1.0}


def test_projection_takes_patches_of_classes_that_use_a_prototype():
    head = small("cosine").float()
    maps, labels = torch.randn(6, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    before, allowed = head.prototypes.detach().clone(), head.allowed()
    last = head.stages(LoopOptions())[1]
    head.start_stage(last, lambda: iter([(maps, labels, torch.arange(6))]))
    patches = head.add_on(maps)
    for m, prototype in enumerate(head.prototypes):
        classes = allowed[:, m].nonzero().flatten()
        assert not head.unprojected[m]  # nobody misses what no class uses
        if not len(classes):
            assert torch.equal(prototype, before[m])
            continue
        mine = patches[torch.isin(labels, classes)].flatten(0, 1)
        cosine = torch.nn.functional.cosine_similarity(mine, before[m][None])
        torch.testing.assert_close(prototype, mine[cosine.argmax()])


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_trains_resumes_and_is_saved(store, tmp_path, similarity):
    def fresh():
        options = {"method": "protopool", "similarity": similarity, "pool_size": 6, "slots": 2}
        options["drop_rate"] = 0.0
        return new_head(store.channels, 2, 0, **options)

    config = FitConfig(epochs=20, batch_size=8)
    whole = fresh()
    history = fit_head(whole, store, config, progress=False)
    assert history[-1]["accuracy"] > 0.9
    state = tmp_path / "state"

    class StopError(Exception):
        pass

    def stop(epoch, figures):
        if epoch == 5:
            raise StopError

    with pytest.raises(StopError):
        fit_head(fresh(), store, config, state=state, callbacks=[stop], progress=False)
    again = fresh()
    assert fit_head(again, store, config, state=state, progress=False) == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    model = infodisent.attach("test_resnet", 2, method="protopool", similarity=similarity)
    infodisent.save(tmp_path / "m.safetensors", model)
    assert infodisent.load(tmp_path / "m.safetensors").model.head.options() == model.head.options()


BAD = {
    "pool_size": ({"pool_size": 0}, "pool_size is 0"),
    "slots": ({"slots": True}, "slots is True"),
    "orthogonality": ({"orthogonality": -1}, "orthogonality is -1"),
    "similarity": ({"similarity": "dot"}, "similarity is 'dot'"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"ProtoPoolHead: {message}"):
        ProtoPoolHead(**{"in_features": 4, "num_classes": 2, **change})
