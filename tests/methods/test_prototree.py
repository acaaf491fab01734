"""ProtoTree against its formulas in float64 loops; stages, pruning, projection, resuming."""

from __future__ import annotations

import math

import pytest
import torch

import infodisent
from infodisent.methods import complete_tree as tree
from infodisent.methods.prototree import ProtoTreeHead
from infodisent.methods.soft_tree import ROUTINGS
from infodisent.methods.stages import LoopOptions, TrainingBatch
from infodisent.training import fit as fitting
from infodisent.training.fit import FitConfig, fit_head, new_head

SIMILARITIES = ["cosine", "l2"]
CONFIG = FitConfig(epochs=4, batch_size=8)


def small(similarity, routing="distributed", depth=3):
    torch.manual_seed(3)
    head = ProtoTreeHead(6, 4, similarity=similarity, depth=depth, dimension=5, routing=routing)
    with torch.no_grad():
        head.leaves.copy_(3 * torch.rand(head.leaves.shape))
        if similarity == "cosine":
            head.threshold.uniform_(0.3, 0.8)
            head.steepness.uniform_(1, 2)
    return head.double().eval()


def right_probabilities(head, x):
    """p(right) of every image and node, [n, M], from the formulas."""
    rows = head.add_on(x.flatten(2).mT)
    found = torch.empty(len(x), head.num_features, dtype=torch.float64)
    for i, pixels in enumerate(rows):
        for m, v in enumerate(head.prototypes):
            if head.similarity == "l2":
                distance = (pixels - v).square().sum(1).min()
                found[i, m] = torch.exp(-torch.sqrt(distance + 1e-14))
            else:
                cosine = ((pixels @ v) / (pixels.norm(dim=1) * v.norm())).max().clamp_min(0)
                slope = head.steepness[m].exp()
                found[i, m] = 1 / (1 + torch.exp(-slope * (cosine - head.threshold[m])))
    return found


def paths(head, p):
    """Probability of every leaf for one image, by walking to each; `p` [M]."""
    found = []
    for leaf in range(len(p) + 1):
        chance, node = 1.0, leaf + len(p)
        while node:
            node, child = (node - 1) // 2, node
            side = int(head.pruned[node])
            turn = {-1: 0.0, 1: 1.0}.get(side, float(p[node]))
            chance *= turn if child % 2 == 0 else 1 - turn
        found.append(chance)
    return torch.tensor(found, dtype=torch.float64)


def mixture(head, p):
    """Probabilities of the classes for one image, by the head's routing."""
    leaves = head.leaves.softmax(1)
    chances = paths(head, p)
    if head.routing == "sample_max":
        return leaves[chances.argmax()]
    if head.routing == "greedy":
        node = 0
        while node < len(p):
            side = int(head.pruned[node])
            right = side == 1 or (side != -1 and p[node] > 0.5)
            node = 2 * node + (2 if right else 1)
        return leaves[node - len(p)]
    return chances @ leaves


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_probabilities_and_evidence_are_the_formula(similarity, routing):
    head = small(similarity, routing)
    x = torch.randn(5, 6, 2, 3, dtype=torch.float64)
    for pruned in ([0] * 7, [0, 1, -1, 2, 0, 0, 2]):
        head.pruned.copy_(torch.tensor(pruned))
        with torch.no_grad():
            p = right_probabilities(head, x)
            wanted = torch.stack([mixture(head, row) for row in p])
            logits, pooled = head(x), head.pool(x).pooled
        torch.testing.assert_close(logits.exp(), wanted)
        torch.testing.assert_close(head.scores(logits), wanted)
        for k in range(4):
            classes = torch.full((5,), k)
            parts = head.contributions(pooled, classes)
            torch.testing.assert_close(parts.sum(1) + head.offsets(classes), wanted[:, k])
            assert (parts[:, torch.tensor(pruned) != 0] == 0).all()
        halves = torch.stack([mixture_of_halves(head)] * 5)
        torch.testing.assert_close(head.offsets(torch.arange(4)), halves[0])
        assert head.used_units().tolist() == [side == 0 for side in pruned]


def mixture_of_halves(head):
    return paths(head, torch.full((head.num_features,), 0.5)) @ head.leaves.softmax(1)


def test_a_mixture_of_tiny_probabilities_has_a_logarithm():
    path = torch.tensor([[0.0, -math.inf], [-400.0, -0.1]], dtype=torch.float64)
    leaves = torch.tensor([[-500.0, 0.0], [0.0, -700.0]], dtype=torch.float64)
    found = tree.log_mixture(path, leaves)
    wanted = (path[:, :, None] + leaves).logsumexp(1)
    torch.testing.assert_close(found, wanted)
    assert tree.log_mixture(path.float(), leaves.float()).isfinite().all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_leaves_learn_by_the_published_update(similarity):
    head = small(similarity)
    x, labels = torch.randn(6, 6, 2, 2, dtype=torch.float64), torch.tensor([3, 0, 0, 1, 3, 3])
    start = torch.rand_like(head.leaves)
    before = head.leaves.detach().clone()
    with torch.no_grad():
        p = right_probabilities(head, x)
        head.leaves_at_start.copy_(start)
        head.batch_count.fill_(2)
        pooled = head.pool(x).pooled
        logits = head.classify(pooled)
        batch = TrainingBatch(labels, pooled)
        head.loss(torch.nn.functional.cross_entropy, logits, batch)
        if similarity == "cosine":
            head.threshold += 1.0  # the optimiser's step: what it changes must not count
        head.learn(logits, batch)
    wanted = (before - start / 2).clamp_min(0)
    for i, label in enumerate(labels.tolist()):
        chances, shares = paths(head, p[i]), before.softmax(1)[:, label]
        for leaf in range(len(before)):
            wanted[leaf, label] += chances[leaf] * shares[leaf] / (chances @ shares)
    torch.testing.assert_close(head.leaves.detach(), wanted)
    assert (before - start / 2).min() < 0, "the case has no entry that the relu cuts"


def test_cabrnet_has_the_same_tree():
    core = pytest.importorskip("cabrnet.core.utils.tree", reason="cabrnet is not installed")
    head = small("l2")
    theirs = core.BinaryNode.create_binary_tree(depth=3, num_classes=4).double()

    def pair(node, place):  # theirs are numbered depth first
        order[node.proto_idxs[0]] = place
        for name, child in (("nsim", 2 * place + 1), ("sim", 2 * place + 2)):
            below = node.get_submodule(f"{node.node_id}_child_{name}")
            if below.proto_idxs is None:
                leaves[child - 7] = below
            else:
                pair(below, child)

    order, leaves = {}, {}
    pair(theirs, 0)
    for place, leaf in leaves.items():
        leaf._relative_distribution.data.copy_(head.leaves[place][None])
    x, labels = torch.randn(5, 6, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 3, 3, 2])
    with torch.no_grad():
        pooled = head.pool(x).pooled
        similar = pooled[:, [order[m] for m in range(7)]]
        one = torch.ones(1, dtype=torch.float64)
        wanted, info = theirs(similar, one, one, torch.tensor([True]))
        logits = head.classify(pooled)
        torch.testing.assert_close(logits.exp(), wanted)
        # the update as its training step writes it
        head.leaves_at_start.copy_(head.leaves)
        head.batch_count.fill_(3)
        target = torch.eye(4, dtype=torch.float64)[labels]
        updated = torch.empty_like(head.leaves)
        for place, leaf in leaves.items():
            path = info[leaf.node_id]["absolute_probability"]
            gain = ((path * leaf.distribution * target) / wanted).sum(0)
            old = leaf._relative_distribution[0]
            updated[place] = torch.relu(old - old / 3) + gain
        batch = TrainingBatch(labels, pooled)
        head.loss(torch.nn.functional.cross_entropy, logits, batch)
        head.learn(logits, batch)
        torch.testing.assert_close(head.leaves.detach(), updated)


def test_leaves_that_say_nothing_are_pruned():
    speaks = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1], dtype=torch.bool)
    # root, its children, theirs: 3 keeps its left leaf, 4 nothing (so 1 turns left), 6 its right
    assert tree.sides(speaks).tolist() == [0, -1, 0, -1, 2, 0, 1]
    assert tree.sides(torch.zeros(8, dtype=torch.bool)).tolist() == [0] * 7


@pytest.mark.parametrize(("classes", "limit"), [(200, 0.01), (2, 0.5 + 0.5 / 199)])
def test_the_published_threshold_is_that_of_200_classes(classes, limit):
    for prune, factor, silent in ((None, 0.999, True), (None, 1.001, False), (0.7, 1.001, True)):
        head = ProtoTreeHead(4, classes, depth=1, prune=prune)
        with torch.no_grad():
            head.leaves[0, 0] = 9.0  # the left leaf says much
            rest = (1 - limit * factor) / (classes - 1)
            head.leaves[1] = math.log(rest)
            head.leaves[1, 1] = math.log(limit * factor)
            head.finish(lambda: iter(()))
        assert head.pruned.tolist() == [-1 if silent else 0]
        assert any("pruned" in text for text in head.notices()) is silent


def two_classes():
    maps, labels = torch.randn(6, 4, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    return maps, labels, (lambda: iter([(maps, labels, torch.arange(6))]))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_prototypes_become_patches_of_classes_below(similarity):
    head = small(similarity, depth=2).float()
    maps, labels, batches = two_classes()
    with torch.no_grad():
        head.leaves.copy_(5 * torch.eye(4))  # class 3 has no images
        before = head.prototypes.clone()
        if similarity == "l2":
            head.leaves[3] = 0  # silent: the node above it turns left
            head.finish(batches)
            assert head.pruned.tolist() == [0, 0, -1]
        else:
            head.start_stage(head.stages(LoopOptions())[1], batches)
    patches = head.add_on(maps)
    assert head.unprojected.tolist() == [False] * 3
    for node, classes in ((0, [0, 1, 2]), (1, [0, 1]), (2, [2])):
        if similarity == "l2" and node == 2:
            assert torch.equal(head.prototypes[2], before[2])  # pruned
            continue
        allowed = patches[torch.isin(labels, torch.tensor(classes))].flatten(0, 1)
        if similarity == "l2":
            best = (allowed - before[node]).square().sum(1).argmin()
        else:
            best = torch.nn.functional.cosine_similarity(allowed, before[node][None]).argmax()
        torch.testing.assert_close(head.prototypes[node], allowed[best])
    if similarity == "cosine":  # they stay patches while the layer learns
        with torch.no_grad():
            head.add_on[0].weight.mul_(torch.rand_like(head.add_on[0].weight))
        value = head.pool(maps, input_fmt="NLC").pos.amax(0)
        torch.testing.assert_close(value, torch.ones(3))
        with torch.no_grad():
            head.finish(batches)
        assert not head.is_patch.any()
        torch.testing.assert_close(head.pool(maps, input_fmt="NLC").pos.amax(0), value)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_decisions_lead_to_the_leaf(routing):
    head = small("cosine", routing)
    head.pruned[2] = 1
    x = torch.randn(8, 6, 2, 3, dtype=torch.float64)
    head.requires_grad_(False)
    p, seen = right_probabilities(head, x), set()
    for i in range(8):
        pooled = head.pool(x[i : i + 1]).pooled[0]
        steps, node, chance = head.decisions(pooled), 0, 1.0
        leaf = int(paths(head, p[i]).argmax()) + 7
        while node < 7:
            if routing == "greedy":
                child = 2 * node + (2 if node == 2 or p[i, node] > 0.5 else 1)
            else:  # the one on the way to the likeliest leaf
                child = 2 * node + 1
                while leaf not in below(child):
                    child += 1
            if node != 2:
                step, steps = steps[0], steps[1:]
                turn = float(p[i, node]) if child % 2 == 0 else 1 - float(p[i, node])
                assert (step.unit, step.yes) == (node, child % 2 == 0)
                assert step.probability == pytest.approx(turn)
                assert step.threshold == pytest.approx(float(head.threshold[node]))
                torch.testing.assert_close(step.distribution, head.means()[child].detach())
                chance *= turn
            node = child
        assert not steps
        seen.add(node)
        assert chance == pytest.approx(float(paths(head, p[i])[node - 7]))
    assert len(seen) > 1, "all images take one path"


def below(node):
    found = {node}
    for _ in range(3):
        found |= {child for n in found for child in (2 * n + 1, 2 * n + 2)}
    return found


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_interrupted_training_goes_on(tmp_path, store, monkeypatch, similarity):
    monkeypatch.setattr("infodisent.methods.prototree.PATCH_EPOCHS", 3)

    def build():
        return new_head(store.channels, 2, 0, method="prototree", depth=2, similarity=similarity)

    whole = build()
    expected = fit_head(whole, store, CONFIG, progress=False)
    assert len(expected) == (4 if similarity == "l2" else 7)
    assert whole.batch_count == 3
    plain = fitting.save_state
    for stop in (2, len(expected) - 1, len(expected)):
        state = tmp_path / f"{stop}.safetensors"

        def dies(path, run, head, optimizer, history, stop=stop):
            plain(path, run, head, optimizer, history)
            if len(history) == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(fitting, "save_state", dies)
        with pytest.raises(KeyboardInterrupt):
            fit_head(build(), store, CONFIG, state=state, progress=False)
        monkeypatch.setattr(fitting, "save_state", plain)
        resumed = build()
        assert fit_head(resumed, store, CONFIG, state=state, progress=False) == expected
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_trains_and_comes_back_from_a_checkpoint(tmp_path, store):
    model = infodisent.attach("test_resnet", 2, method="prototree", channel_drop=0.0)
    history = fit_head(model.head, store, FitConfig(epochs=15, batch_size=8), progress=False)
    assert history[-1]["accuracy"] > 0.9
    assert model.head.depth == 4
    path = tmp_path / "model.safetensors"
    model.head.pruned[3] = -1
    infodisent.save(path, model)
    again = infodisent.load(path).model
    assert again.head.options() == model.head.options()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))


def test_several_labels_are_refused():
    from tests.training.stores import MemoryStore

    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).repeat(4, 1)
    store = MemoryStore(torch.rand(8, 4, 6), labels, ("a", "b"))
    for method in ("prototree", "tree"):
        head = new_head(6, 2, 0, method=method)
        with pytest.raises(ValueError, match="one class an image"):
            fit_head(head, store, FitConfig(epochs=1), progress=False)
    head = ProtoTreeHead(6, 2)
    with pytest.raises(ValueError, match="one class an image"):
        head.loss(None, torch.zeros(8, 2), TrainingBatch(labels, torch.zeros(8, 15)))


BAD = {
    "similarity": ({"similarity": "dot"}, "similarity is 'dot', allowed are cosine, l2"),
    "routing": ({"routing": "max"}, "routing is 'max', allowed are distributed"),
    "depth": ({"depth": 0}, "depth is 0"),
    "deep": ({"depth": 17}, "depth is 17, must be at most 16"),
    "prune": ({"prune": 1.0}, "prune is 1.0"),
    "one class": ({"num_classes": 1}, "num_classes is 1, must be an int >= 2"),
    "dimension": ({"dimension": 0}, "dimension is 0"),
    "channel_drop": ({"channel_drop": 1.0}, "channel_drop is 1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"ProtoTreeHead: {message}"):
        ProtoTreeHead(**{"in_features": 4, "num_classes": 2, **change})


def test_the_default_depth_suits_the_classes():
    depths = {k: ProtoTreeHead(4, k, dimension=2).depth for k in (0, 2, 17, 200)}
    assert depths == {0: 4, 2: 4, 17: 6, 200: 9}
    assert ProtoTreeHead(4, 0).eval()(torch.randn(2, 4, 2, 2)).shape == (2, 15)
