"""ProtoPNet against its formulas in float64; stages, projection, penalty, the command."""

from __future__ import annotations

import json

import pytest
import torch

import infodisent
from infodisent.methods.protopnet import EPSILON, ProtoPNetHead
from infodisent.methods.stages import LoopOptions, TrainingBatch
from infodisent.training.fit import FitConfig, fit_head, new_head
from infodisent.training.run import open_run


def small(similarity, classes=3):
    torch.manual_seed(2)
    head = ProtoPNetHead(6, classes, similarity=similarity, per_class=2, dimension=5)
    return head.double().eval()


def formula(head, x):
    """Similarities of every pixel, [B, P, M], by loops over prototypes."""
    rows = head.add_on(x.flatten(2).mT)
    columns = []
    for v in head.prototypes:
        if head.similarity == "cosine":
            cosine = (rows * v).sum(2) / (rows.norm(dim=2) * v.norm())
            columns.append(cosine.nan_to_num(0))  # all zeros: alike to nothing
        else:
            distance = (rows - v).square().sum(2)
            columns.append(torch.log((distance + 1) / (distance + EPSILON)))
    return torch.stack(columns, 2)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_logits_are_the_formula(similarity):
    head = small(similarity)
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    every = formula(head, x)
    value = every.amax(1).clamp_min(0)  # a cosine may be negative
    pool = head.pool(x)
    torch.testing.assert_close(pool.pos, value)
    assert torch.equal(pool.pos_index >= 0, value > 0)
    there = every.gather(1, pool.pos_index.long().clamp_min(0)[:, None])[:, 0]
    torch.testing.assert_close(there[value > 0], value[value > 0])
    assert (pool.neg == 0).all()
    assert (pool.neg_index == -1).all()
    weight = torch.full((3, 6), -0.5, dtype=torch.float64)
    for k in range(3):
        weight[k, 2 * k : 2 * k + 2] = 1
    torch.testing.assert_close(head(x), value @ weight.mT)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_penalty_is_the_formula(similarity):
    head = small(similarity)
    x, labels = torch.randn(4, 6, 2, 3, dtype=torch.float64), torch.tensor([2, 0, 1, 2])
    pool = head.pool(x)
    penalty = head.penalty(LoopOptions(), TrainingBatch(labels, pool.pooled))
    s = formula(head, x)
    if similarity == "cosine":
        distance = (1 - s.clamp_min(0)).amin(1)
    else:
        rows = head.add_on(x.flatten(2).mT)
        distance = torch.cdist(rows, head.prototypes[None]).square().amin(1)
    cluster = separation = 0.0
    for row, label in zip(distance, labels.tolist(), strict=True):
        own = {2 * label, 2 * label + 1}
        cluster += min(row[m] for m in own) / 4
        separation += min(row[m] for m in range(6) if m not in own) / 4
    wanted = 0.8 * cluster - 0.08 * separation + 1e-4 * 0.5 * 12
    torch.testing.assert_close(penalty, wanted)


def test_projection_moves_prototypes_onto_patches_of_their_class():
    head = small("l2", classes=4).float()
    maps, labels = torch.randn(6, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])  # none of class 3
    before = head.prototypes.detach().clone()
    first, last = head.stages(LoopOptions())
    with torch.no_grad():
        head.start_stage(first, lambda: iter(()))
        assert torch.equal(head.prototypes, before)
        head.start_stage(last, lambda: iter([(maps, labels, torch.arange(6))]))
    patches = head.add_on(maps)
    for m, prototype in enumerate(head.prototypes):
        if m >= 6:
            assert torch.equal(prototype, before[m])
            continue
        own = patches[labels == m // 2].flatten(0, 1)
        nearest = own[(own - before[m]).square().sum(1).argmin()]
        assert torch.equal(prototype, nearest)
    assert head.unprojected.tolist() == [False] * 6 + [True] * 2
    pool = head.pool(maps, input_fmt="NLC")
    assert torch.allclose(pool.pos[:, :6].amax(0), torch.tensor(1 / EPSILON).log())  # 9.21


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_trains_on_stored_features(store, similarity):
    head = new_head(store.channels, 2, 0, method="protopnet", similarity=similarity, per_class=2)
    history = fit_head(head, store, FitConfig(epochs=15, batch_size=8), progress=False)
    assert len(history) == 35
    assert history[-1]["accuracy"] > 0.9
    assert not head.unprojected.any()


def test_attach_save_and_open(tmp_path, image_folder, store):
    model = infodisent.attach("test_resnet", 2, method="protopnet", per_class=1, similarity="l2")
    path = tmp_path / "model.safetensors"
    infodisent.save(path, model)
    again = infodisent.load(path).model
    assert again.head.options() == model.head.options()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))


def test_command(tmp_path, image_folder):
    from typer.testing import CliRunner

    from infodisent.cli.app import app

    run = tmp_path / "run"
    arguments = [
        *("fit", str(image_folder), "-b", "test_resnet", "--no-pretrained", "--epochs", "4"),
        *("--method", "protopnet", "-O", "per_class=20", "-O", "similarity=l2", "--out", str(run)),
        *("--explain", "2"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "ProtoPNet" in result.output
    told = json.loads((run / "metrics.json").read_text())["head_notices"]
    assert all(text in " ".join(result.output.split()) for text in told)
    assert any("show a patch that an earlier one shows" in text for text in told)
    assert open_run(run)[0].model.head.options()["per_class"] == 20
    assert (run / "report.html").stat().st_size > 10_000
    refused = CliRunner().invoke(app, [*arguments[:-2], "--nonneg", "relu"])
    assert isinstance(refused.exception, TypeError)
    assert "protopnet has no option nonneg" in str(refused.exception)


BAD = {
    "similarity": ({"similarity": "dot"}, "similarity is 'dot', allowed are cosine, l2"),
    "per_class": ({"per_class": 0}, "per_class is 0"),
    "dimension": ({"dimension": 1.5}, "dimension is 1.5"),
    "cluster": ({"cluster": -1.0}, "cluster is -1.0"),
    "nan": ({"wrong_weight": float("nan")}, "wrong_weight is nan"),
    "classes": ({"num_classes": True}, "num_classes is True"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"ProtoPNetHead: {message}"):
        ProtoPNetHead(**{"in_features": 4, "num_classes": 2, **change})
