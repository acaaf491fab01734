"""Figures and page show the sum, stand alone, and survive hostile names and lost files."""

from __future__ import annotations

import base64
import io
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from infodisent import report
from infodisent.explanations.local import explain_many
from infodisent.explanations.prototypes import find_prototypes
from infodisent.report import Pictures, marks, prototype_box, segments, signed, terms
from infodisent.report.figure import explanation_figure, prototypes_figure, save_figure
from infodisent.report.page import write_page

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Elements, checked to be nested properly, and the text and sum of each article."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.articles = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, tag

    def handle_data(self, data):
        for tag, attrs in self.open:
            if tag == "article" and "id" in attrs:
                inside = [t for t, _ in self.open]
                entry = self.articles.setdefault(attrs["id"], {"text": "", "sum": []})
                entry["text"] += data
                if "data" in inside:
                    entry["sum"].append((float(self.open[-1][1]["value"]), data))

    def all(self, name):
        return [attrs for tag, attrs in self.elements if tag == name]


@pytest.fixture
def made(store, tiny):
    """Fourteen explanations of a random head, right and wrong ones, and the prototypes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tiny.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    tiny.eval()
    prototypes = find_prototypes(tiny.head, store, k=3, progress=False)
    names = [store.classes[i] for i in store.labels.tolist()]
    files = [*store.files[:8], *store.files[-6:]]
    explanations = explain_many(
        tiny,
        files,
        true_names=[*names[:8], *names[-6:]],
        classes=store.classes,
        progress=False,
    )
    assert {e.correct for e in explanations} == {True, False}
    return explanations, prototypes


def render(tmp_path, explanations, prototypes, **options):
    path = tmp_path / "page.html"
    write_page(path, explanations, prototypes, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_shows_sums_that_are_the_logits(tmp_path, made):
    explanations, prototypes = made
    _, page = render(tmp_path, explanations, prototypes)
    assert len(page.articles) == len(explanations) == 14
    for i, e in enumerate(explanations, 1):
        values = page.articles[f"image-{i}"]["sum"]
        assert len(values) == len(e.shown) + 3  # rest, bias, logit
        exact = [value for value, _ in values]
        assert abs(sum(exact[:-1]) - exact[-1]) <= 1e-3
        assert exact[-1] == e.logit
        read = [float(text.replace("\N{MINUS SIGN}", "-")) for _, text in values]
        assert abs(sum(read[:-1]) - read[-1]) <= 1e-3  # and what is printed adds up too
        assert f"rest of {e.rest_count:,} channels" in page.articles[f"image-{i}"]["text"]


def test_page_stands_alone(tmp_path, made):
    text, page = render(tmp_path, *made, summary=[{"head": "x", "accuracy": 0.5}])
    links = [a[n] for _, a in page.elements for n in ("src", "href", "srcset", "action") if n in a]
    assert len(links) > 50
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for link in links:
        assert link.startswith(("data:image/", "#")), link
        if link.startswith("#"):
            assert link[1:] in ids
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert len(text) < 15e6 / 4
    for uri in links:
        if uri.startswith("data:"):
            Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).load()


def test_page_is_accessible(tmp_path, made):
    _, page = render(tmp_path, *made)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert all("alt" in image for image in page.all("img"))
    drawings = [a for a in page.all("svg") if "aria-hidden" not in a]
    assert drawings
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawings)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for label in page.all("label"):
        assert label["for"] in ids


def test_a_shared_prototype_is_stored_once(tmp_path, made):
    explanations, prototypes = made
    _, page = render(tmp_path, explanations, prototypes, channels=[])
    used = [a["href"] for a in page.all("use")]
    drawn = [
        p.file for e in explanations for c in e.shown for p in prototypes.of(c.channel, c.sign)
    ]
    symbols = page.all("symbol")
    assert len(used) == len(drawn)
    assert len(symbols) == len(set(drawn)) < len(drawn)
    assert {f"#{s['id']}" for s in symbols} == set(used)


def test_wrong_predictions_are_marked(tmp_path, made):
    explanations, prototypes = made
    _, page = render(tmp_path, explanations, prototypes)
    articles = [a for a in page.all("article") if "data-verdict" in a]
    for i, (e, article) in enumerate(zip(explanations, articles, strict=True), 1):
        text = page.articles[f"image-{i}"]["text"]
        assert article["data-verdict"] == ("right" if e.correct else "wrong")
        assert ("Wrong" in text) == (not e.correct)
        assert ("✓ Correct" in text) == e.correct
        assert e.correct or f"it is {e.true_name}" in text


def test_names_cannot_become_markup(tmp_path, made):
    explanations, prototypes = made
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"
    prototypes.classes = (evil, "b")
    prototypes.files = [f"/a/{evil}/{i}.png" for i in range(len(prototypes.files))]
    hostile = replace(
        explanations[0],
        class_name=evil,
        classes=(evil, evil),
        true_name=evil + "!",
        path=f"/tmp/{evil}.png",
    )
    text, page = render(
        tmp_path,
        [hostile, explanations[1]],
        prototypes,
        title=evil,
        summary=[{evil: evil}],
        facts={evil: evil},
    )
    assert "<script" not in text
    assert "<img src=x" not in text
    assert page.all("script") == []
    assert not any(n.startswith("on") for _, a in page.elements for n in a)
    assert "49" not in page.articles["image-1"]["text"].split("}}")[0]
    assert evil in page.articles["image-1"]["text"]  # shown as the text it is


def test_lost_and_corrupt_prototypes_become_placeholders(tmp_path, made, image_folder):
    explanations, prototypes = made
    kept = prototypes.of(explanations[0].shown[0].channel, 1)
    lost, broken = kept[0].file, kept[1].file
    image_folder.joinpath(lost).unlink()
    image_folder.joinpath(broken).write_bytes(b"\x89PNG\r\n")
    _, page = render(tmp_path, explanations[:1], prototypes)
    labels = [a["aria-label"] for a in page.all("svg") if "aria-label" in a]
    assert any(label.endswith("file is missing") for label in labels)
    assert any(label.endswith("file cannot be read") for label in labels)
    pictures = Pictures(prototypes.transform, 120)
    image, missing = pictures.get(lost)
    assert missing == "file is missing"
    assert max(image.size) == 120
    pixels = np.asarray(image)
    assert tuple(pixels[0, 0]) == (206, 208, 212)
    assert (pixels < 120).all(axis=2).sum() > 50  # the name is written on it
    assert pictures.get("/nowhere/花.png").missing
    good = pictures.get(kept[2].file)
    assert good.missing == ""
    assert pictures.get(kept[2].file) is good
    explanation_figure(explanations[0], prototypes)


def test_other_heads_and_bad_arguments(tmp_path, made):
    explanations, prototypes = made
    with pytest.raises(ValueError, match="explanations is empty"):
        write_page(tmp_path / "a.html", [], prototypes)
    channels = prototypes.channels
    with pytest.raises(ValueError, match=f"channel is {channels}, allowed are 0 … {channels - 1}"):
        write_page(tmp_path / "a.html", explanations, prototypes, channels=[channels])
    with pytest.raises(ValueError, match="channels is empty"):
        prototypes_figure(prototypes, [])
    with pytest.raises(ValueError, match="k is 0"):
        prototypes_figure(prototypes, [0], k=0)
    other = replace(explanations[0], rest_count=explanations[0].rest_count + 1)
    match = f"a head with {channels} channels, the explanation of one with {channels + 1}"
    with pytest.raises(ValueError, match=match):
        write_page(tmp_path / "a.html", [other], prototypes)
    with pytest.raises(ValueError, match=match):
        explanation_figure(other, prototypes)
    assert not (tmp_path / "a.html").exists()


def test_summary_and_channels(tmp_path, made):
    rows = [
        {"head": "linear probe", "accuracy": 0.91234, "explanation_size": None, "loss": 0.25},
        {"head": "InfoDisent", "accuracy": 0.9, "explanation_size": 52.0, "images": 1234},
    ]
    text, page = render(tmp_path, *made, summary=rows, facts={"backbone": "b"}, channels=[2, 5])
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text)
    assert cells[:5] == [
        "head",
        "accuracy",
        "channels for 95 % of the logit (median)",
        "loss",
        "images",
    ]
    assert cells[5:10] == ["linear probe", "91.2%", "–", "0.250", "–"]
    assert cells[10:] == ["InfoDisent", "90.0%", "52", "–", "1,234"]
    labels = [a["aria-label"] for a in page.all("article") if "aria-label" in a]
    assert labels == ["Channel 2", "Channel 5"]
    text, page = render(tmp_path, *made, summary={"accuracy": 0.5}, channels=[])
    assert "<dt>accuracy</dt><dd>50.0%</dd>" in text
    assert page.all("table") == []
    assert "What the channels mean" not in text


def test_figure(tmp_path, made):
    explanations, prototypes = made
    e = explanations[0]
    figure = explanation_figure(e, prototypes)
    written = " ".join(
        t.get_text() for t in [*figure.texts, *(t for a in figure.axes for t in a.texts)]
    )
    numbers = [re.sub(r"^([+−])", r"\1 ", signed(t.value)) for t in terms(e)[: len(e.shown)]]
    assert "  ".join(numbers).removeprefix("+ ") in written
    assert f"{abs(e.rest):.3f} (rest of {e.rest_count:,} channels)" in written
    assert f"=  {e.logit:.3f} (logit)" in written
    for c in e.shown:
        assert f"channel {c.channel}" in written
        assert signed(c.contribution) in written
    path = tmp_path / "deep" / "figure.png"
    save_figure(figure, path, dpi=60)
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert min(image.shape[:2]) > 300
    for color in ((0, 114, 178), (213, 94, 0)):  # both kinds of evidence are drawn
        assert (np.abs(image - color).max(axis=2) < 12).sum() > 20
    assert pyplot.get_fignums() == []
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


def test_units_are_called_what_the_head_calls_them(tmp_path, made):
    explanations, prototypes = made
    explanations = [replace(e, unit="prototype") for e in explanations]
    rows = [{"head": "x", "explanation_size": 5.0}]
    text, page = render(tmp_path, explanations, prototypes, summary=rows)
    body = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "channel" not in re.sub(r"base64,[^\"]*", "", body).lower()
    first = explanations[0].shown[0].channel
    assert f"prototype {first}" in page.articles["image-1"]["text"]
    assert '<th scope="col" class="num">prototypes for 95 % of the logit (median)</th>' in text
    figures = (
        explanation_figure(explanations[0], prototypes),
        prototypes_figure(prototypes, [0], unit="prototype"),
    )
    for figure in figures:
        written = [
            t.get_text() for t in [*figure.texts, *(t for a in figure.axes for t in a.texts)]
        ]
        assert any("prototype" in t for t in written)
        assert not any("channel" in t for t in written)


@pytest.mark.parametrize("top", [(0, 0), (1, 0), (0, 1)])
def test_figure_without_evidence_and_with_formulas_for_names(tmp_path, made, tiny, store, top):
    prototypes = made[1]
    prototypes.classes = ("$\\frac{", "a\nb$x^2$")
    e = explain_many(
        tiny,
        store.files[:1],
        classes=prototypes.classes,
        true_names=["$\\nope$"],
        top=top[0],
        top_opposing=top[1],
        progress=False,
    )[0]
    for figure in (explanation_figure(e, prototypes), prototypes_figure(prototypes, [0, 1], k=2)):
        save_figure(figure, tmp_path / "f.png", dpi=40)
        assert np.asarray(Image.open(tmp_path / "f.png")).std() > 5
    render(tmp_path, [e], prototypes)


def test_what_was_done_to_an_image_stands_below_it(tmp_path, made):
    explanations, prototypes = made
    notes = ("the network saw the middle 77 % of the photograph, " + "and so on " * 9, "<b>grey")
    e = replace(explanations[0], notes=notes)
    written = " ".join(t.get_text() for t in explanation_figure(e, prototypes).figure.texts)
    text, page = render(tmp_path, [e], prototypes)
    for note in notes:
        assert note.split() == [w for w in note.split() if w in written.split()]
        assert " ".join(note.split()) in " ".join(page.articles["image-1"]["text"].split())
    assert "&lt;b&gt;grey" in text


def test_segments_end_at_the_logit(made):
    for e in made[0]:
        pieces = segments(e)
        assert pieces[0].start == 0
        assert pieces[-1].end == pytest.approx(e.logit, abs=1e-3)
        for before, after in itertools.pairwise(pieces):
            assert before.end == after.start
        assert all((p.end > p.start) == (p.lane == 0) for p in pieces)


def test_every_mark_can_be_seen(made):
    for e in made[0]:
        boxes = marks(e, 6.0)
        assert [m.number for m in boxes] == list(range(1, len(e.shown) + 1))
        for i, m in enumerate(boxes):
            assert 6 <= m.center[0] <= e.picture.width - 6
            assert 6 <= m.center[1] <= e.picture.height - 6
            assert 0 <= m.box[0] < m.box[2] <= e.picture.width
            for other in boxes[:i]:
                apart = [abs(a - b) for a, b in zip(m.center, other.center, strict=True)]
                assert max(apart) >= 11
                assert m.kind == other.kind or m.box != other.box


def test_heat_is_painted_where_it_is_hot():
    picture = Image.new("RGB", (140, 70), (120, 120, 120))
    heat = torch.zeros(2, 4)
    heat[0, 3] = 1
    for sign in (1, -1):
        pixels = np.asarray(report.heat_overlay(picture, heat, sign)).astype(int)
        assert pixels.shape == (70, 140, 3)
        colorful = pixels.max(axis=2) - pixels.min(axis=2)
        assert colorful[:35, 105:].mean() > 40
        assert colorful[:, :50].max() == 0
        red, _, blue = pixels[12, 128]
        assert (blue > red) == (sign == 1)


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert signed(-0.5) == "\N{MINUS SIGN}0.500"
    assert signed(2, 1) == "+2.0"
    assert signed(-1e-9) == signed(0.0) == "0.000"


def test_prototype_patch_is_on_its_cell(made):
    prototypes = made[1]
    channel = int(prototypes.pos_value[0].argmax())
    p = prototypes.of(channel, 1)[0]
    rows, columns = prototypes.grid
    x0, y0, x1, y1 = prototype_box(p, prototypes.grid, (columns * 10, rows * 20))
    assert (x0, y0, x1, y1) == (
        p.pixel[1] * 10, p.pixel[0] * 20, p.pixel[1] * 10 + 10, p.pixel[0] * 20 + 20,
    )  # fmt: skip
