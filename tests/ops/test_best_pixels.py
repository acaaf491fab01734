"""ops.best_pixels against a loop over everything: values, images, pixels, vectors, class masks."""

from __future__ import annotations

import pytest
import torch

from infodisent import ops, reference
from infodisent.data.store import FeatureStore


def everything(maps, v, similarity):
    """Best of every image and prototype, [N, M]: score (larger is better) and pixel."""
    pool = reference.similarity_pool(
        maps.double(), v.double(), similarity=similarity, input_fmt="NLC"
    )
    return (-pool.value if similarity == "l2" else pool.value), pool.index


def batches(maps, size, *more):
    for part in zip(maps.split(size), *(t.split(size) for t in more), strict=True):
        yield part if more else part[0]


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("similarity", ["dot", "cosine", "l2"])
def test_against_a_loop(similarity, k):
    maps, v = torch.randint(-2, 3, (23, 6, 4)).float(), torch.randint(-2, 3, (9, 4)).float()
    best = ops.best_pixels(batches(maps, 5), v, k=k, similarity=similarity, vectors=True)
    score, pixel = everything(maps, v, similarity)
    if similarity == "cosine":  # whose ties are not exact: rounded alike
        score = torch.stack(
            [
                ops.similarity_pool(part, v, similarity=similarity, input_fmt="NLC").value[0]
                for part in maps.split(1)
            ]
        ).double()
    for m in range(9):
        order = sorted(range(23), key=lambda i, m=m: (-score[i, m].item(), i))[:k]
        filled = min(k, 23)
        assert best.image[:filled, m].tolist() == order
        assert (best.image[filled:, m] == -1).all()
        assert (best.index[filled:, m] == -1).all()
        assert best.value[filled:, m].isnan().all()
        wanted = [
            abs(score[i, m].item()) if similarity == "l2" else score[i, m].item() for i in order
        ]
        assert best.value[:filled, m].tolist() == pytest.approx(wanted, abs=1e-6)
        for rank, i in enumerate(order):
            p = best.index[rank, m]
            if similarity != "cosine":
                assert p == pixel[i, m]
            assert torch.equal(best.vector[rank, m], maps[i, p])


def test_projection_by_class():
    """A prototype gets the nearest patch of its own class; one without images stays without."""
    maps = torch.randn(12, 4, 8).half()
    labels = torch.tensor([0, 1, 2] * 4)
    v = torch.randn(5, 8)
    allowed = torch.zeros(4, 5, dtype=torch.bool)
    allowed[0, 0] = allowed[1, 1] = allowed[2, 2] = allowed[0, 3] = allowed[1, 3] = True
    allowed[3, 4] = True  # no image has this class
    best = ops.best_pixels(
        batches(maps, 5, labels), v, similarity="l2", allowed=allowed, vectors=True
    )
    distance = (maps.double()[:, :, None] - v.double()).square().sum(3)  # [N, P, M]
    for m in range(4):
        counted = distance[:, :, m].masked_fill(~allowed[labels, m][:, None], torch.inf)
        image, pixel = divmod(int(counted.argmin()), 4)
        assert (best.image[0, m], best.index[0, m]) == (image, pixel)
        assert best.value[0, m] == pytest.approx(counted.min().item(), rel=1e-6)
        assert torch.equal(best.vector[0, m], maps[image, pixel])
    assert (best.image[0, 4], best.index[0, 4]) == (-1, -1)
    assert best.value[0, 4].isnan()
    assert (best.vector[0, 4] == 0).all()
    # what was projected is found again, at distance 0
    again = ops.best_pixels(batches(maps, 3, labels), best.vector[0].float(), similarity="l2")
    assert (again.value[0, :4] == 0).all()


def test_several_labels():
    maps, v = torch.randn(6, 3, 4), torch.randn(2, 4)
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 0]]).float()
    best = ops.best_pixels(batches(maps, 4, labels), v, k=6, allowed=torch.eye(2, dtype=torch.bool))
    assert set(best.image[:, 0].tolist()) == {0, 2, 4, -1}
    assert set(best.image[:, 1].tolist()) == {1, 2, -1}


def test_numbers_of_images_and_ties():
    maps = torch.ones(4, 2, 3)
    numbers = torch.tensor([70, 9, 2**32 - 1, 8])
    given = zip(maps.split(2), [None, None], numbers.split(2), strict=True)
    best = ops.best_pixels(given, torch.ones(1, 3), k=3)
    assert best.image[:, 0].tolist() == [8, 9, 70]
    assert best.index[:, 0].tolist() == [0, 0, 0]


def test_negative_and_infinite_values_keep_their_order():
    values = torch.tensor([-torch.inf, -3.0, -0.0, 0.0, -1e-40, 1e-40, 2.0, torch.inf])
    maps = values[torch.randperm(8, generator=torch.Generator().manual_seed(0))].view(8, 1, 1)
    best = ops.best_pixels(batches(maps, 3), torch.ones(1, 1), k=8)
    assert torch.equal(best.value[:, 0], maps.flatten().sort(descending=True)[0] + 0.0)


def test_a_store(store: FeatureStore):
    v = torch.randn(4, store.channels)
    best = ops.best_pixels(store, v, k=2, similarity="cosine", batch_size=7)
    whole = ops.best_pixels([store.gather(torch.arange(len(store)))], v, k=2, similarity="cosine")
    assert torch.equal(best.image, whole.image)
    assert torch.equal(best.index, whole.index)


def test_other_layouts():
    maps, v = torch.randn(5, 4, 2, 3), torch.randn(3, 4)
    best = ops.best_pixels(batches(maps, 2), v, vectors=True, input_fmt="NCHW")
    rows = ops.best_pixels([maps.flatten(2).mT], v, vectors=True)
    for a, b in zip(best, rows, strict=True):
        assert torch.equal(a, b)


NAN, ONE, TWO = torch.tensor([[[torch.nan]]]), torch.ones(1, 1, 1), torch.ones(2, 1, 1)
BAD = {
    "k": ({"k": 0}, ValueError, "k is 0, must be an int >= 1"),
    "allowed dtype": ({"allowed": torch.ones(2, 1)}, TypeError, "torch.bool"),
    "allowed shape": ({"allowed": torch.ones(2, 3).bool()}, ValueError, r"\(classes, 1\)"),
    "no labels": ({"allowed": torch.ones(2, 1).bool()}, TypeError, "have no labels"),
    "label": (
        {"maps": [(torch.ones(1, 1, 1), torch.tensor([7]))], "allowed": torch.ones(2, 1).bool()},
        ValueError,
        "labels are 7 … 7 but allowed has 2 rows",
    ),
    "parts": ({"maps": [(1, 2, 3, 4)]}, TypeError, "a batch has 4 parts"),
    "one map": ({"maps": ONE}, TypeError, r"maps is a Tensor, .* such as \[map\]"),
    "no maps": ({"maps": None}, TypeError, "maps is a NoneType"),
    "named parts": ({"maps": [{"map": ONE}]}, TypeError, "a batch is a dict, must be a map"),
    "numpy": ({"maps": [(ONE.numpy(),)]}, TypeError, "a batch's map must be a torch.Tensor"),
    "map": ({"maps": [ONE[0]]}, ValueError, "a batch's map is .* input_fmt NLC has 3 dim"),
    "prototypes": ({"maps": [], "prototypes": [1.0]}, TypeError, "prototypes must be a torch"),
    "one prototype": ({"maps": [], "prototypes": ONE[0, 0]}, ValueError, r"prototypes is \(1,\)"),
    "similarity": ({"maps": [], "similarity": "cos"}, ValueError, "similarity is 'cos'"),
    "layout": ({"maps": [], "input_fmt": "CHW"}, ValueError, "input_fmt is 'CHW'"),
    "vectors": ({"vectors": "no"}, ValueError, "vectors is 'no'"),
    "one label": (
        {"maps": [(TWO, torch.tensor([0]))], "allowed": torch.ones(2, 1).bool()},
        ValueError,
        r"labels are \(1,\), must be \(2,\) or \(2, classes\)",
    ),
    "half labels": (
        {"maps": [(TWO, torch.ones(2))], "allowed": torch.ones(2, 1).bool()},
        TypeError,
        "labels are torch.float32",
    ),
    "words": (
        {"maps": [(TWO, ["a", "b"])], "allowed": torch.ones(2, 1).bool()},
        TypeError,
        "labels are a list that is no tensor",
    ),
    "one number": ({"maps": [(TWO, None, [3])]}, ValueError, r"numbers are \(1,\), must be \(2,\)"),
    "large number": (
        {"maps": [(TWO, None, [0, 2**32])]},
        ValueError,
        r"0 … 4294967296, must be 0 to",
    ),
    "negative number": ({"maps": [(TWO, None, [-1, 2])]}, ValueError, "numbers are -1 … 2"),
    "half number": ({"maps": [(TWO, None, [0.5, 1])]}, TypeError, "numbers are torch.float32"),
    "nan": ({"maps": [NAN]}, ValueError, "a similarity is NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, error, message = BAD[case]
    arguments = {"maps": [torch.ones(1, 1, 1)], "prototypes": torch.ones(1, 1), **change}
    with pytest.raises(error, match=f"best_pixels: .*{message}"):
        ops.best_pixels(**arguments)


def test_nan_of_what_does_not_count_does_not_matter():
    maps = torch.cat([NAN, torch.ones(1, 1, 1)])
    allowed = torch.tensor([[False], [True]])
    best = ops.best_pixels([(maps, torch.tensor([0, 1]))], torch.ones(1, 1), allowed=allowed)
    assert best.image.item() == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_every_integer_dtype(dtype):
    """A mask or a byte is no index of torch's that means a label."""
    labels, allowed = torch.tensor([0, 1]), torch.tensor([[False], [True]])
    best = ops.best_pixels([(TWO, labels.to(dtype))], torch.ones(1, 1), allowed=allowed)
    assert best.image.item() == 1


def test_vectors_of_batches_of_several_dtypes():
    """Kept in the dtype that holds all of them: what was projected is found again."""
    maps = [
        torch.tensor([[[value]]], dtype=d) for value, d in ((0.1, torch.half), (0.7, torch.float))
    ]
    for order in (maps, maps[::-1]):
        best = ops.best_pixels(order, torch.ones(1, 1), k=2, vectors=True)
        assert best.vector.dtype == torch.float32
        assert best.vector.flatten().tolist() == [m.item() for m in maps[::-1]]


def test_without_images_there_are_vectors_of_nothing():
    best = ops.best_pixels(iter(()), torch.ones(3, 4).half(), k=2, vectors=True)
    assert torch.equal(best.vector, torch.zeros(2, 3, 4).half())
    assert (best.image == -1).all()
    assert ops.best_pixels([], torch.ones(3, 4)).vector is None
