"""Finding one's way in the page, in headless Chromium; see `conftest` for what it shows."""

from __future__ import annotations

import json
import shutil

import pytest

from .browser import chromium
from .conftest import IMAGES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed"),
]


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
    opened.wait("document.querySelector('.card').dataset.image === '4'")
    assert opened.value("scrollY") < 400  # the list's line is not what the window scrolls to


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
    assert opened.one("#theme") == "Dark"
    assert opened.value("document.documentElement.dataset.theme") == "light"
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


@pytest.mark.parametrize("width", [420, 1400])
def test_nothing_runs_over_the_edge(opened, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.call("Emulation.setDeviceMetricsOverride", **size)
    for part in ("images", "classes", "units", "model"):
        opened.value(f"location.hash = 'of-{part}'")
        opened.wait(f"!document.getElementById('{part}').hidden")
        assert opened.value("scrollY") == 0
        assert opened.value("document.documentElement.scrollWidth") <= width
    opened.value("location.hash = 'image-1'")
    opened.call("Emulation.clearDeviceMetricsOverride")


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
