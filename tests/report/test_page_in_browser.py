"""The page as a reader asks it, in headless Chromium: what it answers, to the digit.

The page is of three classes of squares that a colour tells apart, explained by a random head, see
`conftest`; beside it a tree of the same images.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infodisent.report.page import write_page

from .browser import Browser, chromium
from .conftest import CLASSES, IMAGES
from .test_page import EVIL, hostile

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")


def sum_of(browser, card=0):
    """The addends of a card's sum, the total last."""
    selector = f".card:nth-child({card + 1}) .equation data"
    return [float(v) for v in browser.all(selector, "value")]


def truth(units, i, k):
    """Contributions of an image to a class in float64, written out."""
    counted, row = units.images[i].counted.double(), units.weights[k].double()
    return [float(row[u]) * float(counted[u]) for u in range(len(row))]


def test_the_page_runs_whatever_the_names(tmp_path, gathered):
    """The quick one: hostile names, no error, and a sum that is the logit."""
    explanations, prototypes, about = hostile(*gathered[:2])
    write_page(tmp_path / "page.html", explanations, prototypes, about)
    with Browser(tmp_path) as browser:
        browser.open(tmp_path / "page.html")
        values = sum_of(browser)
        assert abs(sum(values[:-1]) - values[-1]) < 1e-6
        assert values[-1] == pytest.approx(explanations[0].logit, abs=1e-5)
        assert EVIL in browser.one(".card h3")
        browser.value("location.hash = 'of-classes'")
        browser.wait("!document.getElementById('classes').hidden")
        assert browser.errors == []


@pytest.mark.slow
def test_the_same_patches_are_folded(tmp_path, gathered):
    """Of units whose first training patch is that of an earlier row, below a line that opens."""
    explanations, prototypes, _ = gathered
    e = explanations[0]
    first, _, twin = (c.channel for c in e.supporting[:3])
    for name in ("image", "index"):
        own = getattr(prototypes, f"{'pos' if e.supporting[0].side > 0 else 'neg'}_{name}")
        for sides in ("pos", "neg"):
            getattr(prototypes, f"{sides}_{name}")[0, twin] = own[0, first].item()
    patches, expected = {}, {}
    for c in e.shown:
        kept = prototypes.of(c.channel, c.side)[0]
        earlier = patches.setdefault((kept.file, kept.pixel), c.channel)
        if earlier != c.channel:
            expected[str(c.channel)] = f"the same patches as channel {earlier}"
    assert str(twin) in expected
    assert len(expected) < len(e.shown)
    write_page(tmp_path / "page.html", [e], prototypes)
    with Browser(tmp_path) as browser:
        browser.open(tmp_path / "page.html")
        assert len(browser.all(".card .row")) == len(e.shown)
        units = browser.all(".card .row:has(.folded)", "dataset.unit")
        assert dict(zip(units, browser.all(".folded summary"), strict=True)) == expected
        assert not browser.one(".folded", "open")
        visible = "document.querySelector('.folded .strip').checkVisibility()"
        assert not browser.value(visible)
        browser.click(".folded summary")
        browser.wait(visible)
        assert browser.errors == []


@pytest.mark.slow
def test_an_abstention_is_shown_as_one(tmp_path, gathered):
    explanations, prototypes, _ = gathered
    e = explanations[0]
    e = replace(e, classes=("a class of quite a long name", "another of a name as long as that"))
    quiet = replace(e, abstained=True, supporting=(), opposing=(), rest_count=e.channels)
    write_page(tmp_path / "page.html", [quiet, e], prototypes)
    with Browser(tmp_path) as browser:
        size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.open(tmp_path / "page.html")
        assert browser.one(".card .verdict").startswith("Abstains: no class is supported")
        assert browser.one(".card h3 small") == "Image 1 · explained class"
        assert browser.all(".card .every") == []  # nothing to list
        assert browser.value("document.documentElement.scrollWidth") <= 400
        browser.choose("#predicted", str(e.class_index))
        assert browser.all(".item:not([hidden])", "dataset.i") == ["1"]
        browser.choose("#predicted", "")
        browser.choose("#verdict", "abstained")
        assert browser.all(".item:not([hidden])", "dataset.i") == ["0"]
        assert browser.errors == []


@pytest.mark.slow
def test_sums_of_every_image_are_the_logits(opened, page):
    _, explanations, _, _ = page
    for e in explanations:
        values = sum_of(opened)
        assert abs(sum(values[:-1]) - values[-1]) < 1e-9
        assert values[-1] == pytest.approx(e.score_value, abs=1e-6)
        assert opened.one(".card h3 bdi") == e.class_name
        opened.press("ArrowRight")


@pytest.mark.slow
def test_unlike_training_images(opened, page):
    opened.choose("#verdict", "unusual")
    assert opened.all(".item:not([hidden]) b") == [str(IMAGES)]  # the noise, and nothing else
    assert "Unlike the training images" in opened.one(".card .warning")
    opened.choose("#verdict", "")
    opened.click(".item:first-child .pick")
    opened.wait("document.querySelector('.card').dataset.image === '1'")
    assert opened.all(".card .warning") == []
    assert "of training maximum" in opened.one(".row")


@pytest.mark.slow
def test_why_this_class_and_not_that_one(opened, page):
    _, explanations, units, _ = page
    e = explanations[0]
    other = next(k for k in range(3) if k != e.class_index)
    opened.choose(".not-class", str(other))
    difference = [a - b for a, b in zip(truth(units, 0, e.class_index), truth(units, 0, other))]
    values = sum_of(opened)
    assert abs(sum(values[:-1]) - values[-1]) < 1e-9
    assert values[-1] == pytest.approx(float(e.logits[e.class_index] - e.logits[other]), abs=1e-5)
    assert values[-1] == pytest.approx(sum(difference), abs=1e-5)
    shown = zip(
        opened.all(".rows .row", "dataset.unit"),
        opened.all(".rows .value data", "value"),
        strict=True,
    )
    for unit, value in shown:
        assert float(value) == pytest.approx(difference[int(unit)], abs=1e-6)
    assert f"rather than {CLASSES[other]}" in opened.one("h4.supports")
    opened.choose(".why-class", str(other))  # the two change places, so nothing is contrasted
    assert opened.one(".card h3 bdi") == CLASSES[other]
    assert sum_of(opened)[-1] == pytest.approx(float(e.logits[other]), abs=1e-6)
    opened.click(f'.chances li[data-class="{e.class_index}"] button')
    assert opened.one(".card h3 bdi") == e.class_name


@pytest.mark.slow
def test_all_units_are_listed(opened, page):
    _, explanations, units, _ = page
    exact = truth(units, 0, explanations[0].class_index)
    opened.click(".every summary")
    opened.wait("document.querySelectorAll('.all tbody tr').length > 0")
    while not opened.one(".every .button", "hidden"):
        opened.click(".every .button")
    listed = opened.all(".all tbody tr", "dataset.unit")
    values = [float(v) for v in opened.all(".all tbody data", "value")]
    assert sorted(map(int, listed)) == [u for u, value in enumerate(exact) if value]
    for unit, value in zip(listed, values, strict=True):
        assert value == pytest.approx(exact[int(unit)], abs=1e-6)
    assert sum(values) == pytest.approx(explanations[0].score_value, abs=1e-5)
    assert [abs(v) for v in values] == sorted((abs(v) for v in values), reverse=True)


@pytest.mark.slow
def test_a_unit_is_left_out(opened, page):
    _, explanations, units, _ = page
    e, k = explanations[0], explanations[0].class_index
    unit = int(opened.one(".rows .row", "dataset.unit"))
    opened.click(".rows .row .counts input")
    opened.wait("document.querySelector('.consequence')")
    left = [float(e.logits[c]) - truth(units, 0, c)[unit] for c in range(3)]
    values = sum_of(opened)
    assert values[-1] == pytest.approx(left[k], abs=1e-5)
    assert abs(sum(values[:-1]) - values[-1]) < 1e-9
    total = sum(float(np.exp(v)) for v in left)
    for c in range(3):
        text = opened.one(f'.chances li[data-class="{c}"] .num').split("%")[-2]
        assert float(text) == pytest.approx(100 * float(np.exp(left[c])) / total, abs=0.06)
    best = CLASSES[int(np.argmax(left))]
    assert best in opened.one(".consequence")
    opened.click(".consequence .button")
    assert opened.all(".consequence") == []
    assert sum_of(opened)[-1] == pytest.approx(e.score_value, abs=1e-6)


@pytest.mark.slow
def test_a_row_shows_its_heat_map_on_the_photograph(opened):
    unit = opened.one(".rows .row:nth-child(2)", "dataset.unit")
    assert opened.all(".stage canvas", "width") == []
    opened.point(".rows .row:nth-child(2) .numbers")
    opened.wait("document.querySelector('.stage canvas')")
    assert opened.one(".stage", "dataset.unit") == unit
    assert unit in opened.one(".legend")
    # hottest where the box is
    hot = opened.value(
        "(() => { const c = document.querySelector('.stage canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let best = 0;"
        "for (let i = 0; i < d.length / 4; i++) if (d[4*i+3] > d[4*best+3]) best = i;"
        "return [(best % c.width) / c.width, Math.floor(best / c.width) / c.height]; })()"
    )
    x, y, w, h, size = opened.value(
        "(() => { const b = document.querySelector('.aimed .box'), s = b.ownerSVGElement.viewBox;"
        "return [...['x','y','width','height'].map((n) => Number(b.getAttribute(n))),"
        "s.baseVal.width]; })()"
    )
    assert x - 1 <= hot[0] * size <= x + w + 1
    assert y - 1 <= hot[1] * size <= y + h + 1
    opened.value(
        "(() => { const o = document.querySelector('.opacity'); o.value = '0.3';"
        "o.dispatchEvent(new Event('input')); })()"
    )
    assert opened.one(".stage canvas", "style.opacity") == "0.3"
    before = opened.one(".legend")
    opened.choose(".scale", "training")
    assert opened.one(".legend") != before
    opened.point("h1")
    opened.wait("!document.querySelector('.stage canvas')")
    opened.value("document.querySelector('.rows .row').focus()")  # keyboard does the same
    opened.wait("document.querySelector('.stage canvas')")


@pytest.mark.slow
def test_patches_are_enlarged_and_whole_images_on_demand(opened):
    grid, patch = opened.value("JSON.parse(document.getElementById('data').textContent)"
                               ".runs[0].grid"), ".rows .strip .tile"  # fmt: skip
    share = opened.value(
        f"(() => {{ const t = document.querySelector('{patch}'), b = t.querySelector('.box');"
        "return b.getAttribute('width') / t.viewBox.baseVal.width; })()"
    )
    assert share > 1.5 / grid[1]
    opened.click(".whole")
    whole = opened.value(f"document.querySelector('{patch}').viewBox.baseVal.width")
    assert whole == opened.value(
        "Math.max(...JSON.parse(document.getElementById('data').textContent).pictures"
        ".map((p) => p.size[0]))"
    )


@pytest.mark.slow
def test_two_images_and_two_runs_side_by_side(opened, page):
    _, explanations, _, other = page
    opened.choose("#beside", "4")
    assert opened.all(".card", "dataset.image") == ["1", "5"]
    assert sum_of(opened, 1)[-1] == pytest.approx(explanations[4].score_value, abs=1e-6)
    opened.choose("#beside", "run-1")
    assert opened.all(".card", "dataset.run") == ["0", "1"]
    opened.click("#next")
    opened.wait("document.querySelector('.card').dataset.image === '2'")
    assert opened.all(".card", "dataset.image") == ["2", "2"]  # the run stays
    values = sum_of(opened, 1)
    assert values[-1] == pytest.approx(other[1].score_value, abs=1e-5)
    assert abs(sum(values[:-1]) - values[-1]) < 1e-9
    assert "probability" in opened.one(".card:nth-child(2) .term.total")
    steps = opened.all(".card:nth-child(2) .path .asked")
    assert steps == [f"{i}. prototype {s.unit}" for i, s in enumerate(other[1].decisions, 1)]
    assert opened.all(".card:nth-child(2) .counts") == []  # no unit of a tree may be left out
    opened.choose("#beside", "")
    assert opened.all(".card", "dataset.run") == ["0"]
