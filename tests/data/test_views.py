"""Views: the same copies whatever the order, pairs that share their geometry, a store beside."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from infodisent import attach
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.data import shards
from infodisent.data.augmentation import Augmentation, Augmenter, Copy, CopyDataset
from infodisent.data.images import collate, load_image
from infodisent.data.views import ViewStore, extract_views
from infodisent.layout import to_bpc

STILL = Augmentation(rotate=0, translate=0, zoom=0, shear=0, flip=False, colour=0, shift=0)


@pytest.fixture
def config(tiny):
    return transform_config(tiny)


def picture(seed=0):
    pixels = torch.randint(0, 256, (90, 120, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy()).resize((360, 270))


def copies(config, augmentation, seed=(0, 3, 1)):
    augmenter = Augmenter(config, augmentation)
    moved = augmenter.move(picture(), seed)
    return [augmenter.view(moved, seed, view) for view in (0, 1)]


def test_no_change_is_the_evaluation_transform(config):
    one, other = copies(config, STILL)
    torch.testing.assert_close(one, transform_from(config)(picture()), atol=1e-5, rtol=0)
    assert torch.equal(one, other)


def test_views_share_geometry_and_differ_in_colour(config):
    one, other = copies(config, dataclasses.replace(STILL, rotate=30, flip=True))
    assert torch.equal(one, other)
    assert not torch.equal(one, transform_from(config)(picture()))
    one, other = copies(config, dataclasses.replace(STILL, colour=0.4))
    assert not torch.equal(one, other)


def test_shift_moves_the_crop_of_each_view(config):
    shifted = dataclasses.replace(STILL, shift=0.1)
    seen = [v[0].flatten() for n in range(6) for v in copies(config, shifted, (0, n, 0))]
    assert len({tuple(row[:8].tolist()) for row in seen}) > 6


@pytest.mark.parametrize(
    "change",
    [{"rotate": 20}, {"translate": 0.2}, {"zoom": 0.3}, {"shear": 20}, {"flip": True},
     {"colour": 0.5}, {"shift": 0.1}],
    ids=str,
)  # fmt: skip
def test_every_option_does_something(config, change):
    plain = transform_from(config)(picture())
    changed = dataclasses.replace(STILL, **change)
    made = [copies(config, changed, (0, n, 0))[0] for n in range(4)]
    assert max((view - plain).abs().max() for view in made) > 0.1


def test_copies_depend_on_their_seed_alone(config, store):
    """Not on the order, on who draws random numbers meanwhile, nor are those disturbed."""
    numbers = [(i, pair, view) for i in (0, 3) for pair in (0, 1) for view in (0, 1)]
    wanted = [Copy(store.files[i], (0, i, pair), view) for i, pair, view in numbers]
    made = CopyDataset(wanted, config, Augmenter(config, Augmentation()))
    first = [made[i][1] for i in range(8)]
    torch.manual_seed(5)
    mixed = {i: made[i][1] for i in (7, 2, 5, 0)}
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(view, first[i]) for i, view in mixed.items())
    assert len({tuple(view.flatten()[:50].tolist()) for view in first}) == 8


def test_an_image_that_is_gone_yields_why(config):
    made = CopyDataset([Copy("gone.png", (1,)), Copy("gone.png")], config, Augmenter(config, STILL))
    good, batch, bad, _ = collate([made[0], made[1]])
    assert (good, batch) == ([], None)
    assert "gone.png is not a file" in bad[1][1]


def test_pairs_are_views_of_the_training_images(tmp_path, tiny, store, config):
    views = extract_views(tiny, store, tmp_path / "v", pairs=3, seed=2, progress=False)
    train = store.indices("train")
    assert torch.equal(views.positions, train)
    assert len(views) == 6 * len(train)
    assert views.original_logits is None
    images, numbers = train[[4, 1]], torch.tensor([2, 0])
    maps = views.pair(images, numbers)
    augmenter = Augmenter(config, Augmentation())
    inputs = []
    for view in (0, 1):
        for image, number in ((int(train[4]), 2), (int(train[1]), 0)):
            seed = (2, image, number)
            moved = augmenter.move(load_image(store.files[image]), seed)
            inputs.append(augmenter.view(moved, seed, view))
    with torch.no_grad():
        wanted = to_bpc(tiny.forward_features(torch.stack(inputs)), tiny.input_fmt, 0)
    torch.testing.assert_close(maps.float(), wanted, rtol=2e-3, atol=2e-3)


def test_killed_extraction_goes_on(tmp_path, tiny, store, monkeypatch):
    options = {"batch_size": 8, "progress": False}
    whole = extract_views(tiny, store, tmp_path / "whole", **options)
    calls, plain = [], shards._forward

    def dies(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(shards, "_forward", dies)
    with pytest.raises(KeyboardInterrupt):
        extract_views(tiny, store, tmp_path / "part", **options)
    monkeypatch.setattr(shards, "_forward", lambda *a: (calls.append(1), plain(*a))[1])
    resumed = extract_views(tiny, store, tmp_path / "part", **options)
    every = torch.arange(len(whole))
    assert torch.equal(resumed.gather(every), whole.gather(every))
    before = len(calls)
    extract_views(tiny, store, tmp_path / "part", **options)
    assert len(calls) == before


def test_what_does_not_fit_is_refused(tmp_path, tiny, store):
    views = extract_views(tiny, store, tmp_path / "v", pairs=1, progress=False)
    with pytest.raises(ValueError, match="different: views"):
        extract_views(tiny, store, tmp_path / "v", pairs=2, progress=False)
    softer = Augmentation(colour=0.1)
    with pytest.raises(ValueError, match="different: views"):
        extract_views(tiny, store, tmp_path / "v", pairs=1, augmentation=softer, progress=False)
    again = extract_views(tiny, store, tmp_path / "v", pairs=2, overwrite=True, progress=False)
    assert len(again) == 2 * len(views)
    with pytest.raises(ValueError, match="pairs is 0"):
        extract_views(tiny, store, tmp_path / "v", pairs=0)
    with pytest.raises(ValueError, match="not pairs of views"):
        ViewStore(store.path)
    torch.manual_seed(9)
    other = attach("test_resnet", 2).eval()
    with pytest.raises(ValueError, match="maps of other weights"):
        extract_views(other, store, tmp_path / "w", progress=False)
    views = ViewStore(tmp_path / "v")
    views.check(store, store.indices("train"))
    with pytest.raises(ValueError, match="lack 6 of 23 training images"):
        views.check(store, torch.arange(len(store)))
    views.meta["made_from"] |= {"weights": "others"}
    with pytest.raises(ValueError, match="are not of the features"):
        views.check(store, store.indices("train"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"colour": 2}, ValueError, r"colour is 2, must be in \[0, 1\]"),
        ({"rotate": float("nan")}, ValueError, "rotate is nan"),
        ({"flip": 1}, TypeError, "flip is 1, must be True or False"),
        ({"shift": "a"}, TypeError, "shift is 'a', must be a number"),
        ({"size": 3}, TypeError, "no option size, it has rotate"),
    ],
)
def test_errors_name_the_option(options, error, message):
    with pytest.raises(error, match=message):
        Augmentation.of(options)
