"""The original head's row: scored right, or not at all."""

from __future__ import annotations

import pytest
import torch

from infodisent.evaluation.accuracy import original_head
from infodisent.evaluation.original import match_classes


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        (("n02086240_shih_tzu", "n02115641_dingo"), [155, 273]),
        (("n02086240", "golden_retriever"), [155, 207]),
        (("Golden-Retriever", "TABBY", "tiger cat"), [207, 281, 282]),
        (("tiger cat", "TABBY", "golden retriever"), [282, 281, 207]),  # in whatever order
        (("n02086240", "n99999999"), None),
        (("n02086240", "cat"), None),
        (("crane", "tabby"), None),  # a bird and a machine have that name
        (("tabby", "tabby cat"), None),  # one column for two classes
        (("functional", "defective"), None),
    ],
)
def test_imagenet(columns, classes):
    assert match_classes(classes, 1000) == columns


def test_never_by_count_or_order():
    assert match_classes(("a", "b"), 2) is None
    assert match_classes(tuple(f"class {i}" for i in range(1000)), 1000) is None
    assert match_classes(("b", "a"), 2, ("a", "b")) == [1, 0]
    assert match_classes(("b", "a"), 3, ("a", "b", "a")) is None
    assert match_classes(("b", "a"), 2, ("a", "b", "c")) is None  # names of something else


def test_names_of_torchvision_are_imagenets():
    from infodisent.backbones.torchvision import class_names_of

    names = class_names_of("resnet50")
    assert match_classes(("n02099601", "shih_tzu"), 1000, names) == [207, 155]
    assert match_classes(("crane", "tabby"), 1000, names) is None


def test_mapping():
    for value in (207, "golden retriever", "n02099601"):
        assert match_classes(("dog", "tabby"), 1000, mapping={"dog": value}) == [207, 281]
    with pytest.raises(ValueError, match="'dog' is 1000, allowed are 0 … 999"):
        match_classes(("dog", "tabby"), 1000, mapping={"dog": 1000})
    with pytest.raises(ValueError, match="'dog' is 'hound', and the original has no class of that"):
        match_classes(("dog", "tabby"), 1000, mapping={"dog": "hound"})
    with pytest.raises(ValueError, match="2 of the original's classes have that name"):
        match_classes(("bird", "tabby"), 1000, mapping={"bird": "crane"})
    with pytest.raises(ValueError, match="'cat' is none of the classes dog, tabby"):
        match_classes(("dog", "tabby"), 1000, mapping={"cat": 281})


def test_row_is_over_the_known_classes(store):
    test = store.indices("val")
    assert original_head(store, test) is None  # 1000 classes, not these two
    store.meta["original"] = {"trained": True, "class_names": ["red", "blue", "green"]}
    logits = torch.zeros(len(store), 3)
    logits[:, 1] = 9  # "blue" would win, but is not asked about
    logits[torch.arange(len(store)), torch.tensor([2, 0])[store.labels]] = 1  # green, red
    store.original_logits = logits
    assert original_head(store, test).accuracy == 1.0
    store.meta["original"]["trained"] = False  # random weights have nothing to say
    assert original_head(store, test) is None


def test_huge_logits_are_scored(store):
    """Beyond what half precision holds, case: an original head with very large weights."""
    store.meta["original"] = {"trained": True, "class_names": ["green", "red"]}
    store.original_logits = torch.nn.functional.one_hot(store.labels, 2).float() * 1e30
    row = original_head(store, store.indices("val"))
    assert row.accuracy == 1.0
    assert row.loss == 0.0
