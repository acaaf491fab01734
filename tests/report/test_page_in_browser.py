"""The page as a reader uses it, in headless Chromium: every interaction, and its numbers.

Pages are of three classes of squares that a colour tells apart, explained by a random head; beside
it a tree of the same images.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import infodisent
from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder
from infodisent.explanations.local import explain_many
from infodisent.explanations.prototypes import find_prototypes
from infodisent.report.familiarity import training_familiarity
from infodisent.report.page import About, write_page
from infodisent.report.pagedata import Side
from infodisent.report.units import Units

from .browser import Browser, chromium
from .conftest import randomise
from .test_page import EVIL, hostile

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
CLASSES = ("blue", "green", "red")
IMAGES = 9


def explained(model, store, files, true):
    units = Units(model.head, len(files))
    options = {"classes": CLASSES, "true_names": true, "progress": False}
    explanations = explain_many(model, files, on_features=units, **options)
    prototypes = find_prototypes(model.head, store, k=3, progress=False)
    return explanations, prototypes, units


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The file, its explanations, its units and the head they are of."""
    folder = tmp_path_factory.mktemp("page")
    generator = np.random.default_rng(0)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[8:20, 4 + i : 20 + i, channel] = 255
            Image.fromarray(pixels).save(folder / "images" / name / f"{i:02d}.png")
    torch.manual_seed(1)
    model = infodisent.attach("test_resnet", 3).eval()
    store = extract(model, scan_folder(folder / "images"), folder / "features", progress=False)
    randomise(model.head)
    names = [store.classes[i] for i in store.labels.tolist()]
    chosen = [i for k in range(3) for i in range(12 * k, 12 * k + 3)]
    files, true = [store.files[i] for i in chosen], [names[i] for i in chosen]
    odd = folder / "images" / "white.png"
    Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(odd)
    files[-1] = str(odd)
    explanations, prototypes, units = explained(model, store, files, true)
    verdicts = {e.correct for e in explanations}
    assert verdicts == {True, False}
    torch.manual_seed(5)
    tree = infodisent.attach("test_resnet", 3, method="prototree", depth=3).eval()
    with torch.no_grad():
        tree.head.leaves.copy_(3 * torch.rand(8, 3))
    other, kept, table = explained(tree, store, files, true)
    path = folder / "page.html"
    familiarity = training_familiarity(model.head, store)
    side = Side("first", explanations, prototypes, units, familiarity)
    write_page(
        path, explanations, prototypes, About(chosen="All."), side=side,
        compared=[Side("a tree", other, kept, table)],
    )  # fmt: skip
    return path, explanations, units, other


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def opened(browser, page):
    """The page just opened, light and without a pointer on it; no script may fail."""
    browser.open(page[0])
    yield browser
    assert browser.errors == []


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
        browser.value("location.hash = 'classes'")
        browser.wait("!document.getElementById('classes').hidden")
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
def test_next_and_previous(opened):
    assert opened.one("#place") == f"1 of {IMAGES}"
    assert opened.one("#previous", "disabled")
    opened.click("#next")
    opened.wait("location.hash === '#image-2'")
    assert opened.one("#place") == f"2 of {IMAGES}"
    opened.press("j")
    opened.press("ArrowLeft")
    opened.press("k")
    opened.wait("document.getElementById('place').textContent.startsWith('1 of')")
    assert opened.one("[aria-current] b") == "1"
    opened.click(".item:nth-child(4) .pick")
    opened.wait("location.hash === '#image-4'")
    assert opened.one(".card", "dataset.image") == "4"
    assert opened.value("scrollY") < 400  # the list's line is not what the window scrolls to


@pytest.mark.slow
def test_filters_search_and_order(opened, page):
    _, explanations, _, _ = page

    def shown():
        return [int(i) + 1 for i in opened.all(".item:not([hidden])", "dataset.i")]

    def those(test):
        return [i for i, e in enumerate(explanations, 1) if test(e)]

    opened.choose("#verdict", "wrong")
    assert shown() == those(lambda e: e.correct is False)
    assert opened.one(".card", "dataset.image") == str(shown()[0])
    opened.choose("#verdict", "right")
    assert shown() == those(lambda e: e.correct)
    assert opened.one("#found") == f"{len(shown())} of {IMAGES} images"
    opened.click("#reset")
    assert shown() == list(range(1, IMAGES + 1))
    opened.choose("#predicted", "1")
    assert shown() == those(lambda e: e.predicted_name == "green")
    opened.click("#reset")
    opened.choose("#true", "2")
    assert shown() == those(lambda e: e.true_name == "red")
    opened.click("#reset")
    opened.type("#search", "BLUE/01")
    assert shown() == those(lambda e: "blue/01" in e.path)
    opened.click("#reset")
    unit = explanations[3].shown[0].channel
    opened.type("#unit", str(unit))
    assert shown() == those(lambda e: unit in [c.channel for c in e.shown])
    opened.click("#reset")
    opened.choose("#order", "unsure")
    chances = [float(explanations[i - 1].probabilities.max()) for i in shown()]
    assert chances == sorted(chances)
    opened.type("#search", "no such thing")
    assert shown() == []


@pytest.mark.slow
def test_unlike_training_images(opened, page):
    opened.choose("#verdict", "unusual")
    assert opened.all(".item:not([hidden]) b") == [str(IMAGES)]  # the noise, and nothing else
    assert "Unlike the training images" in opened.one(".card .warning")
    opened.choose("#verdict", "")
    opened.click(".item:first-child .pick")
    opened.wait("location.hash === '#image-1'")
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
def test_click_to_enlarge(opened):
    for selector in (".stage", ".here .zoomer", ".strip .zoomer"):
        opened.click(selector)
        opened.wait("document.getElementById('zoom').open")
        width = opened.value("document.querySelector('.zoomed').clientWidth")
        assert width > 400
        opened.value(
            "(() => { const s = document.querySelector('#zoom input'); s.value = '3';"
            "s.dispatchEvent(new Event('input')); })()"
        )
        assert opened.value("document.querySelector('.zoomed').clientWidth") > 2.9 * width
        opened.press("Escape")
        opened.wait("!document.getElementById('zoom').open")


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
def test_galleries_of_classes_and_units(opened, page):
    _, explanations, units, _ = page
    opened.click("#tab-classes")
    opened.wait("!document.getElementById('classes').hidden")
    name = explanations[0].class_name
    assert opened.one("#class-panel h3") == name
    for title, test in (
        ("Decided for it, rightly", lambda e: e.predicted_name == name and e.correct),
        ("Decided for it, wrongly", lambda e: e.predicted_name == name and not e.correct),
        (
            "Of this class, but decided otherwise",
            lambda e: e.true_name == name and not e.correct,
        ),
    ):
        count = sum(map(test, explanations))
        titles = [t for t in opened.all("#class-panel .group h4") if t.startswith(f"{title} (")]
        assert titles == ([f"{title} ({count})"] if count else [])
    opened.click("#class-panel .meanings a")
    opened.wait("!document.getElementById('units').hidden")
    weights = opened.all("#unit-panel .weights .num")
    unit = int(opened.value("location.hash").rsplit("-")[-1])
    heaviest = max(abs(float(w)) for w in units.weights[:, unit])
    assert abs(float(weights[0].replace("\N{MINUS SIGN}", "-"))) == pytest.approx(
        heaviest, abs=1e-3
    )
    unit = explanations[2].shown[0].channel
    opened.value(f"location.hash = 'unit-0-{unit}'")
    opened.wait(f"document.querySelector('#unit-panel h3').textContent.endsWith(' {unit}')")
    decided = {i for i, e in enumerate(explanations, 1) if unit in [c.channel for c in e.shown]}
    links = opened.all("#unit-panel .thumbs a", "hash")
    assert {int(link.rsplit("-")[-1]) for link in links} == decided
    opened.click("#unit-panel .thumbs a")
    opened.wait("!document.getElementById('images').hidden")


@pytest.mark.slow
def test_two_images_and_two_runs_side_by_side(opened, page):
    _, explanations, _, other = page
    opened.choose("#beside", "4")
    assert opened.all(".card", "dataset.image") == ["1", "5"]
    assert sum_of(opened, 1)[-1] == pytest.approx(explanations[4].score_value, abs=1e-6)
    opened.choose("#beside", "run-1")
    assert opened.all(".card", "dataset.run") == ["0", "1"]
    opened.click("#next")
    opened.wait("location.hash === '#image-2'")
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


@pytest.mark.slow
def test_light_dark_print_and_contrast(opened):
    def contrast(foreground, background):
        return opened.value(
            "(() => { const lum = (c) => { const v = c.match(/\\d+/g).slice(0, 3).map((x) => {"
            "x /= 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });"
            "return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };"
            "const e = document.createElement('i'); document.body.append(e);"
            f"e.style.color = 'var(--{foreground})';"
            f"e.style.backgroundColor = 'var(--{background})';"
            "const s = getComputedStyle(e), a = lum(s.color), b = lum(s.backgroundColor);"
            "e.remove();"
            "return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })()"
        )

    pairs = [
        ("ink", "bg"), ("soft", "bg"), ("soft", "card"), ("soft", "well"), ("for", "card"),
        ("against", "card"), ("bad", "bad-bg"), ("warn", "warn-bg"), ("ink", "for-bg"),
    ]  # fmt: skip
    for dark in ("light", "dark"):
        if opened.value("document.documentElement.dataset.theme") != dark:
            opened.press("d")
        assert opened.value("document.documentElement.dataset.theme") == dark
        for pair in pairs:
            assert contrast(*pair) >= 4.5, (dark, pair)
    opened.click("#theme")
    assert opened.one("#theme", "ariaPressed") == "false"
    opened.call("Emulation.setEmulatedMedia", media="print")
    assert opened.value("getComputedStyle(document.querySelector('.filters')).display") == "none"
    assert opened.value("document.querySelector('.card').offsetHeight") > 300
    opened.call(
        "Emulation.setEmulatedMedia",
        media="",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    opened.call("Page.reload")
    opened.wait("document.documentElement?.dataset.ready === 'yes'")
    assert opened.value("document.documentElement.dataset.theme") == "dark"
    opened.call("Emulation.setEmulatedMedia", media="", features=[])


@pytest.mark.slow
def test_keyboard_and_names_for_all(opened):
    opened.press("/")
    opened.wait("document.activeElement.id === 'search'")
    opened.value("document.activeElement.blur()")
    opened.value("document.getElementById('tab-images').focus()")
    opened.press("ArrowRight")
    opened.wait("!document.getElementById('classes').hidden")
    assert opened.value("document.activeElement.id") == "tab-classes"
    assert opened.all("[role=tab][aria-selected=true]", "id") == ["tab-classes"]
    opened.value("location.hash = 'image-1'")
    opened.wait("!document.getElementById('images').hidden")
    nameless = opened.value(
        "[...document.querySelectorAll('svg[role=img], input, select, button')].filter((e) =>"
        "!e.closest('[hidden]') && !e.getAttribute('aria-label') && !e.closest('label')"
        "&& !e.textContent.trim() && !e.title && !e.querySelector('[aria-label]'))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1400])
def test_nothing_runs_over_the_edge(opened, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.call("Emulation.setDeviceMetricsOverride", **size)
    for part in ("image-1", "classes", "units", "model"):
        opened.value(f"location.hash = '{part}'")
        opened.wait(f"!document.getElementById('{part.replace('image-1', 'images')}').hidden")
        assert opened.value("document.documentElement.scrollWidth") <= width
    opened.value("location.hash = 'image-1'")
    opened.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.slow
def test_it_reads_without_scripts(browser, page, tmp_path):
    copy = tmp_path / "plain.html"
    shutil.copy(page[0], copy)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.navigate", url=copy.as_uri())
        browser.wait("document.querySelectorAll('article.static').length === 9")
        assert browser.value("document.querySelector('article.static').offsetHeight") > 100
        assert browser.value("document.querySelector('.filters').offsetHeight") == 0
        assert json.loads(browser.one("#data"))["runs"][1]["name"] == "a tree"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
