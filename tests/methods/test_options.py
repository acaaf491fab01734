"""Options survive subclasses and rotations that were replaced."""

from __future__ import annotations

import pytest

from infodisent import InfoDisentHead, attach, load, save
from infodisent.methods import METHODS, build_head
from infodisent.methods.protoquant import ProtoQuantHead
from infodisent.methods.tesnet import TesNetHead


class Fixed(InfoDisentHead):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


def test_a_subclass_has_the_options_of_its_base(tmp_path):
    head = Fixed(8, 3, nonneg="relu", drop_rate=0.2, bias=True)
    assert head.options() == InfoDisentHead(8, 3, nonneg="relu", drop_rate=0.2, bias=True).options()
    assert Fixed(8, 3, rotate=False).options()["rotate"] is False
    model = attach("test_resnet", 3)
    model.head = Fixed(model.num_features, 3, nonneg="relu", bias=True)
    save(tmp_path / "model.safetensors", model)
    assert load(tmp_path / "model.safetensors").model.head.options() == model.head.options()


def test_a_rotation_taken_out_after_attach(tmp_path):
    model = attach("test_resnet", 3)
    model.head.rotation = None
    assert model.head.options()["rotate"] is False
    assert "parametrization" not in model.head.options()
    save(tmp_path / "model.safetensors", model)
    assert load(tmp_path / "model.safetensors").model.head.rotation is None


def test_options_are_those_that_the_constructor_takes():
    """Of the classes below, those that it hands on, and no others."""
    assert "similarity" not in TesNetHead.option_names()  # `PrototypeHead` has it
    handed_on = ProtoQuantHead.option_names()
    assert set(handed_on) == {"codes", "temperature", "sparsity", "bias", "drop_rate"}
    assert ProtoQuantHead(4, 2, drop_rate=0.5).options()["drop_rate"] == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_every_option_is_described(method):
    """From the code alone: a signature, a line of a docstring, a check that names the argument."""
    described = METHODS[method].described_options()
    assert tuple(option.name for option in described) == METHODS[method].option_names()
    for option in described:
        assert all((option.kind, option.meaning, option.allowed)), option
    defaults = {option.name: option.default for option in described}
    assert build_head(method, 8, 3, **defaults).options() == build_head(method, 8, 3).options()


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("infodisent", "bias", "no"),  # a word that would be true
        ("infodisent", "rotate", 0),
        ("infodisent", "drop_rate", "abc"),
        ("protopnet", "cluster", None),
        ("tesnet", "cluster", "abc"),
        ("tesnet", "wrong_weight", True),
        ("tesnet", "subspaces", float("inf")),
        ("st_protopnet", "closeness", {}),
        ("st_protopnet", "drop_rate", float("nan")),
        ("protoquant", "temperature", "abc"),
        ("protoquant", "bias", "no"),
        ("prototree", "prune", "abc"),
        ("prototree", "channel_drop", True),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(method, option, value):
    with pytest.raises(ValueError, match=rf"Head: {option} is .*(must be|allowed)"):
        build_head(method, 8, 3, **{option: value})
