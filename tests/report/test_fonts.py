"""Names in all scripts: drawn by a font that has them, or spelt, and said once."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from infodisent.explanations.local import explain
from infodisent.explanations.prototypes import find_prototypes
from infodisent.report import fonts
from infodisent.report.figure import explanation_figure, save_figure
from infodisent.report.page import write_page
from infodisent.report.view import cut


@pytest.fixture
def no_other_fonts(monkeypatch):
    """A machine with matplotlib's own fonts only."""
    monkeypatch.setattr(fonts, "_families", lambda: ())
    for cached in (fonts._family_with, fonts._spell):
        cached.cache_clear()
    fonts._spelt.clear()
    fonts._announced.clear()
    yield
    fonts._family_with.cache_clear()


@pytest.mark.parametrize(
    ("name", "spelt"),
    [
        ("猫 品", "\\u732b \\u54c1"),
        ("ねこ", "neko"),
        ("🐟 fish", "[fish] fish"),
        ("\N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROSCOPE}\ufe0f", "[woman][microscope]"),
        ("Ａｂ①", "Ab①"),
        ("naïve Straße Ω مرحبا", "naïve Straße Ω مرحبا"),
        ("a\tb\nc\x00", "a b c "),
        ("caf\udce9", "caf\\udce9"),
        ("\U0002000b", "\\U0002000b"),
        ("", ""),
    ],
)
def test_letters_that_no_font_has_are_spelt(no_other_fonts, name, spelt):
    text, families = fonts.lettering(name)
    assert text.replace("\N{ZERO WIDTH JOINER}", "").replace("\ufe0f", "") == spelt
    assert "猫" not in text
    assert len(families) == len(set(families))


def test_a_font_that_has_the_letter_is_taken(monkeypatch):
    """Here a font of mathematics stands for the one with the ideographs."""
    monkeypatch.setattr(fonts, "_usual_font_has", lambda letter: letter != "∮")
    fonts._family_with.cache_clear()
    text, families = fonts.lettering("a∮")
    assert text == "a∮"
    assert len(families) > 1
    fonts._family_with.cache_clear()


def test_bitmap_fonts_and_fonts_of_boxes_are_not_taken(monkeypatch):
    entries = [
        SimpleNamespace(name="Noto Color Emoji", fname="/a", weight=400, style="normal"),
        SimpleNamespace(name=".LastResort", fname="/b", weight=400, style="normal"),
        SimpleNamespace(name="Odd", fname="/c", weight=900, style="italic"),
        SimpleNamespace(name="Odd", fname="/d", weight="bold", style="normal"),
        SimpleNamespace(name="WenQuanYi Zen Hei", fname="/e", weight=500, style="normal"),
    ]
    manager = SimpleNamespace(ttflist=entries, addfont=lambda path: None)
    monkeypatch.setattr(fonts.font_manager, "fontManager", manager)
    monkeypatch.setattr(fonts.font_manager, "findSystemFonts", list)
    fonts._families.cache_clear()
    assert fonts._families() == (("WenQuanYi Zen Hei", "/e"), ("Odd", "/d"))
    fonts._families.cache_clear()


def test_it_is_said_once(no_other_fonts, capsys):
    fonts.lettering("猫 fish")
    fonts.announce_spelling()
    fonts.lettering("猫 fish")
    fonts.announce_spelling()
    printed = capsys.readouterr().out
    assert printed.count("no font here has 1 letter") == 1
    assert "Noto Sans CJK" in printed.replace("\n", " ")


NAMES = ("猫 品种", "R$5 ou R$10", "<script>alert(1)</script> & co", "🐟 \udcff", "W" * 300)


@pytest.mark.parametrize("name", NAMES)
def test_figure_and_page_of_any_name(tmp_path, no_other_fonts, tiny, store, name):
    prototypes = find_prototypes(tiny.head, store, k=1, progress=False)
    prototypes.classes = (name, "b")
    e = explain(tiny, store.files[0], classes=("a", "b"), true_name=name, top=1, top_opposing=1)
    e = replace(e, class_name=name, classes=(name, "b"), path=f"/x/{name[:60]}/caf\udce9.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(explanation_figure(e, prototypes), tmp_path / "f.png", dpi=50)
    assert np.asarray(Image.open(tmp_path / "f.png")).std() > 5
    write_page(tmp_path / "p.html", [e], prototypes)
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert text.count("<script") == 3  # the page's own
    assert "caf\\udce9.png" in text


def test_long_titles_do_not_run_into_each_other(tiny, store):
    prototypes = find_prototypes(tiny.head, store, k=1, progress=False)
    names = ("W" * 300, "M" * 300)
    e = explain(tiny, store.files[0], classes=names, class_index=0, true_name="Q" * 300)
    figure = explanation_figure(e, prototypes)
    renderer = figure.canvas.get_renderer()
    title, wrong = (
        next(t for t in figure.texts if letter * 20 in t.get_text() and "“" not in t.get_text())
        for letter in "WQ"
    )
    assert title.get_window_extent(renderer).x1 < wrong.get_window_extent(renderer).x0
    assert wrong.get_window_extent(renderer).x1 <= figure.bbox.width


def test_cut_counts_wide_letters_twice():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cut("猫猫猫", 6) == "猫猫猫"
    assert cut("猫猫猫猫", 6) == "猫猫…"
