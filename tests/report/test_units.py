"""What the page knows of all units: sums of every class, maps, places, how usual an image is."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import infodisent
from infodisent.explanations.local import explain_many
from infodisent.explanations.prototypes import find_prototypes
from infodisent.report.familiarity import Familiarity, training_familiarity
from infodisent.report.packing import packed, packed_rows, packed_steps, script_json
from infodisent.report.page import write_page
from infodisent.report.pagedata import Side, page_data
from infodisent.report.pictures import Pictures
from infodisent.report.shelf import Shelf
from infodisent.report.standing import held_out_standing
from infodisent.report.units import FEWEST_MAPS, MAP_BYTES, ImageUnits, Units, UnitTable
from infodisent.report.view import short_name

from .conftest import randomise

METHODS = {
    "infodisent": {},
    "protopnet": {},
    "pipnet": {},
    "bcos": {},
    "prototree": {"depth": 3},
}
LINEAR = {"infodisent", "protopnet", "pipnet"}


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_every_class_of_every_method_adds_up(store):
    for method in METHODS:
        _check_sums(method, store)


def _check_sums(method, store):
    torch.manual_seed(2)
    model = infodisent.attach("test_resnet", 2, method=method, **METHODS[method]).eval()
    if method == "infodisent":
        randomise(model.head)
    if method == "prototree":
        with torch.no_grad():
            model.head.leaves.copy_(3 * torch.rand(8, 2))
    units = Units(model.head, 3)
    files = [store.files[0], store.files[5], store.files[-1]]
    explanations = explain_many(
        model, files, classes=store.classes, progress=False, on_features=units
    )
    prototypes = find_prototypes(model.head, store, k=2, progress=False)
    data = page_data([Side("r", explanations, prototypes, units)])
    run = json.loads(json.dumps(data, allow_nan=False))["runs"][0]
    # of two classes the sum of a tree is a multiple of anything; it must not pass for linear
    assert run["linear"] == (method in LINEAR), method
    assert run["removable"] == (method in LINEAR), method
    size = len(run["used"])
    for i, e in enumerate(explanations):
        image = run["images"][i]
        scores = unpacked(image["scores"], "<f8")
        for k in range(2):
            if run["linear"]:
                weights = _rows(run["weights"], 2, size)
                counted = unpacked(image["counted"], "<f4")
                parts = [float(weights[k][u]) * float(counted[u]) for u in range(size)]
            else:
                at, values = image["table"][str(k)]
                parts = [0.0] * size
                for u, value in zip(unpacked(at, "<u4"), unpacked(values, "<f4"), strict=True):
                    parts[u] = float(value)
            assert sum(parts) + run["offsets"][k] == pytest.approx(scores[k], abs=2e-5)
            if k == e.class_index:
                assert scores[k] == pytest.approx(e.score_value, abs=1e-5)
                for c in e.shown:
                    u = run["used"].index(c.channel)
                    assert parts[u] == pytest.approx(c.contribution, abs=1e-5)


def _rows(table, count, size):
    if "dense" in table:
        return unpacked(table["dense"], "<f4").reshape(count, size)
    rows = np.zeros((count, size), np.float32)
    start, column, value = (
        unpacked(table[name], dtype)
        for name, dtype in (("start", "<u4"), ("column", "<u4"), ("value", "<f4"))
    )
    for k in range(count):
        for i in range(start[k], start[k + 1]):
            rows[k, column[i]] = value[i]
    return rows


def test_a_tree_that_says_nothing_is_explained_by_nothing(tmp_path, store):
    model = infodisent.attach("test_resnet", 2, method="prototree", depth=2).eval()
    units = Units(model.head, 1)
    explanations = explain_many(model, store.files[:1], progress=False, on_features=units)
    assert explanations[0].shown == ()
    prototypes = find_prototypes(model.head, store, k=1, progress=False)
    side = Side("r", explanations, prototypes, units)
    write_page(tmp_path / "page.html", explanations, prototypes, side=side)


def test_maps_and_places_are_those_of_the_head(gathered, tiny):
    explanations, prototypes, units = gathered
    rows, columns = prototypes.grid
    for e, image in zip(explanations, units.images, strict=True):
        place = {int(u): n for n, u in enumerate(image.map_units)}
        for c in e.shown:
            stored = image.maps[place[c.channel]].view(rows, columns).float()
            largest = max(c.pos, c.neg)
            exact = c.pos * c.pos_heat - c.neg * c.neg_heat  # the map, from its two halves
            assert (stored * largest / 127 - exact).abs().max() <= largest * 0.51 / 127
            cell = int((image.pos_index if c.side == 1 else image.neg_index)[c.channel])
            x, y = cell % columns, cell // columns
            assert c.box[0] == round(x * e.picture.width / columns)
            assert c.box[1] == round(y * e.picture.height / rows)


def test_maps_of_many_images_are_fewer(tiny, store):
    randomise(tiny.head)
    cells = store.grid[0] * store.grid[1]
    count = MAP_BYTES // cells // 40  # room for 40 maps an image
    for expected, kept in ((count, 40), (100 * count, FEWEST_MAPS)):
        units = Units(tiny.head, expected)
        explain_many(tiny, store.files[:1], progress=False, on_features=units)
        assert len(units.images[0].map_units) == kept


def test_packed_numbers_come_back():
    values = torch.tensor([[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0]])
    sparse = packed_rows(values)
    assert "dense" not in sparse
    assert np.array_equal(_rows(sparse, 2, 4), values.numpy())
    assert np.array_equal(_rows(packed_rows(values + 1), 2, 4), values.numpy() + 1)
    steps = packed_steps(torch.tensor([0.0, 3.0, 7.0]))
    read = unpacked(steps["q"], "<u2") * steps["max"] / 65535
    assert np.allclose(read, [0, 3, 7], atol=7 / 65535)
    assert packed_steps(torch.zeros(3)) == {"max": 0}
    assert unpacked(packed(torch.tensor([-3, 5]), "i1"), "i1").tolist() == [-3, 5]
    text = script_json({"</script>": "<!--\u2028&\udcff"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": "<!--\u2028&\\udcff"}  # no text, so it is spelt


def test_a_full_shelf_keeps_the_first_of_every_side(gathered):
    _, prototypes, _ = gathered
    shelf = Shelf(most=4)
    found = shelf.units(0, prototypes, Pictures(prototypes.transform, 32), range(40))
    assert 4 <= len(shelf.pictures) <= 6
    assert [len(side) for side in found[0]] == [len(prototypes.of(0, s)) for s in (1, -1)]
    for unit, sides in found.items():
        for sign, side in zip((1, -1), sides, strict=True):
            files = [(p.file, p.value) for p in prototypes.of(unit, sign)]
            read = [shelf.pictures[place]["name"] for place, *_ in side]
            assert set(read) <= {short_name(file) for file, _ in files}
    assert sum(len(side) for sides in found.values() for side in sides) > 40  # shared ones stay


def test_distance_to_the_training_images():
    mean, spread = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 2.0, 0.0])
    known = Familiarity(mean, spread, torch.tensor([0.1, 0.5, 1.0, 2.0]), torch.tensor([1.0, 3.0]))
    unit = [2.0, 4.0, 9.0]  # the third never varies
    by_hand = math.sqrt((((2 - 1) / 0.5) ** 2 + ((4 + 2) / 2) ** 2) / 2)
    assert float(known.distance(torch.tensor(unit))) == pytest.approx(by_hand)
    assert known.rarity(0.5) == 0.75
    assert known.rarity(2.5) == 0
    assert known.energy_rarity(2.0) == 0.5


def test_noise_is_unlike_the_training_images(tmp_path, store, tiny):
    randomise(tiny.head)
    known = training_familiarity(tiny.head, store)
    assert known is None  # 17 images are too few to say anything
    generator = np.random.default_rng(1)
    noise = tmp_path / "noise.png"
    Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(noise)
    train = store.indices("train")
    pooled = torch.cat(
        [tiny.head.pool(maps, input_fmt="NLC").pooled for maps, _, _ in store.batches(train, 8)]
    ).detach()
    known = Familiarity(pooled.mean(0), pooled.std(0), torch.zeros(1), torch.zeros(1))
    usual = known.distance(pooled).max()
    units = Units(tiny.head, 1)
    explain_many(tiny, [str(noise)], progress=False, on_features=units)
    own = units.images[0]
    assert known.distance(own.pos - own.neg) > 1.5 * usual


def test_standing_counts_images(store, tiny):
    randomise(tiny.head)
    known = held_out_standing(tiny.head, store)
    table = [[0, 0], [0, 0]]
    for maps, labels, _ in store.batches(store.indices("val"), 1, dtype=None):
        with torch.no_grad():
            said = int(tiny.head(maps, input_fmt="NLC").argmax())
        table[int(labels[0])][said] += 1
    assert known.confusion.tolist() == table
    right, count = table[0][0] + table[1][1], sum(map(sum, table))
    assert known.accuracy == pytest.approx(right / count)
    assert known.error == pytest.approx(math.sqrt(right * (count - right) / count**3))


@pytest.mark.slow
def test_a_page_of_a_thousand_images_is_bounded(tmp_path, gathered):
    """1,280 units, all of which count, and photographs of noise, the worst that JPEG meets."""
    explanations, prototypes, _ = gathered
    size, cells, count, g = 1280, 49, 1000, torch.Generator().manual_seed(0)
    rows = {
        name: getattr(prototypes, name)[:, torch.arange(size) % prototypes.channels]
        for side in ("pos", "neg")
        for name in (f"{side}_value", f"{side}_image", f"{side}_index")
    }
    prototypes = replace(prototypes, grid=(7, 7), **rows)
    noise = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
    many = [
        replace(
            explanations[i % 14], picture=Image.fromarray(noise[i]), supporting=(), opposing=(),
            rest_count=size, path=f"{i}.png",
        )
        for i in range(count)
    ]  # fmt: skip
    table = UnitTable(torch.rand(2, size), torch.zeros(2).double(), torch.arange(size), True, True)
    kept = max(FEWEST_MAPS, MAP_BYTES // (count * cells))
    for e in many:
        pos, neg = torch.rand(2, size, generator=g)
        index = torch.randint(0, cells, (2, size), dtype=torch.int32, generator=g)
        maps = torch.randint(-127, 128, (kept, cells), dtype=torch.int8, generator=g)
        table.images.append(
            ImageUnits(e.logits.double(), pos - neg, {}, pos, neg, *index, torch.arange(kept), maps)
        )
    path = tmp_path / "page.html"
    write_page(path, many, prototypes, side=Side("r", many, prototypes, table))
    assert 40e6 < path.stat().st_size < 66e6
