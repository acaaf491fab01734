"""ProtoPNet and ProtoPool against CaBRNet's, where that is installed; and where it is known wrong.

CaBRNet 1.2 re-implements both. Its package drags in much that a test does not need:
``pip install --no-deps cabrnet==1.2 loguru`` is enough for the logits; for the losses also
``graphviz thop py-cpuinfo captum`` and what else its models import. What is missing skips.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from infodisent.methods.protopnet import ProtoPNetHead
from infodisent.methods.protopool import ProtoPoolHead
from infodisent.methods.stages import LoopOptions, TrainingBatch

pytest.importorskip("cabrnet")
SIMILARITY = {"name": "ProtoPNetSimilarity", "params": {"stability_factor": 1e-4}}


def protopnet(scale=1.0):
    """Our head and CaBRNet's classifier of the same prototypes and weights."""
    decision = pytest.importorskip("cabrnet.archs.protopnet.decision")
    torch.manual_seed(7)
    head = ProtoPNetHead(6, 3, similarity="l2", per_class=2, dimension=5).double()
    theirs = decision.ProtoPNetClassifier(SIMILARITY, 3, 5, 2).double()
    with torch.no_grad():
        head.prototypes.mul_(scale)
        head.last.weight.normal_()
        theirs.prototypes.copy_(head.prototypes[:, :, None, None])
        theirs.last_layer.weight.copy_(head.last.weight)
    return head.eval(), theirs.eval()


def protopool():
    """The same of ProtoPool; the choices of both are ones."""
    decision = pytest.importorskip("cabrnet.archs.protopool.decision")
    torch.manual_seed(7)
    head = ProtoPoolHead(6, 3, similarity="l2", pool_size=7, slots=2, dimension=5).double()
    theirs = decision.ProtoPoolClassifier(SIMILARITY, 3, 5, 7, 2).double()
    with torch.no_grad():
        # no two slots of a class share a prototype
        for k, pair in enumerate(([0, 3], [3, 6], [1, 2])):
            head.assignment[k] = torch.nn.functional.one_hot(torch.tensor(pair), 7)
        head.last.weight.normal_()
        theirs.prototypes.copy_(head.prototypes[:, :, None, None])
        theirs.proto_slot_map.copy_(head.assignment.mT)
        theirs.last_layer.weight.copy_(head.last.weight)
    return head.eval(), theirs.eval()


def embedded(head, x):
    """What CaBRNet's classifiers take: the map after the added layers, NCHW."""
    return head.add_on(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


X = torch.randn(4, 6, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([2, 0, 1, 2])


def loss_of(model, theirs, coefficients, output):
    """The terms that CaBRNet's model adds to the cross-entropy."""
    owner = SimpleNamespace(
        classifier=theirs,
        loss_coefficients=coefficients,
        num_prototypes=theirs.num_prototypes,
        _compatibility_mode=True,
    )
    total, _ = model.loss(owner, output, LABELS)
    return total - torch.nn.functional.cross_entropy(output[0], LABELS)


def test_protopnet_logits():
    head, theirs = protopnet()
    logits, distance = theirs(embedded(head, X))
    torch.testing.assert_close(head(X), logits)
    torch.testing.assert_close(head.compare(head.embed(X)).value, distance)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_protopnet_penalty(scale):
    """Theirs holds while distances are below D; beyond, its separation term loses the minimum."""
    head, theirs = protopnet(scale)
    model = pytest.importorskip("cabrnet.archs.protopnet.model").ProtoPNet
    coefficients = {"clustering": 0.8, "separability": -0.08, "regularization": 1e-4}
    wanted = loss_of(model, theirs, coefficients, theirs(embedded(head, X)))
    pool = head.pool(X)
    assert bool((head.compare(head.embed(X)).value > head.dimension).any()) == (scale > 1)
    ours = head.penalty(LoopOptions(), TrainingBatch(LABELS, pool.pooled))
    if scale == 1:
        torch.testing.assert_close(ours, wanted)
    else:
        assert not torch.allclose(ours, wanted, rtol=1e-2)


def test_protopool_logits():
    head, theirs = protopool()
    logits, distance, _ = theirs(embedded(head, X))
    torch.testing.assert_close(head(X), logits)
    torch.testing.assert_close(head.compare(head.embed(X)).value, distance)


def test_protopool_penalty():
    head, theirs = protopool()
    model = pytest.importorskip("cabrnet.archs.protopool.model").ProtoPool
    coefficients = {"clustering": 0.8, "separability": -0.08, "regularization": 1e-4}
    wanted = loss_of(model, theirs, coefficients, theirs(embedded(head, X)))
    units, extra = head.training_pool(X)
    ours = head.penalty(LoopOptions(), TrainingBatch(LABELS, units, extra))
    torch.testing.assert_close(ours, wanted)


def test_published_protopool_answers_at_random():
    """Its evaluation draws choices even at a scale of 10,000; ours are those of the largest."""
    head, theirs = protopool()
    close = torch.rand(3, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        head.assignment.copy_(1e-4 * close)
        theirs.proto_slot_map.copy_(head.assignment.mT)
        features = embedded(head, X)
        first, second = (theirs(features, gumbel_scale=10_000)[0] for _ in range(2))
        assert not torch.allclose(first, second)
        assert torch.equal(head(X), head(X))
