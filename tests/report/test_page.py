"""The page without its scripts: sums, escapes, what it says of the model; it stands alone."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text
from PIL import Image

import infodisent
from infodisent.report.figure import explanation_figure
from infodisent.report.page import MATRIX_CLASSES, SCRIPTS, About, write_page
from infodisent.report.pagedata import Side
from infodisent.report.standing import Standing
from infodisent.report.view import top_classes

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Elements, checked to be nested properly, the text and sum of each image, and the data."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.items, self.scripts = [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []
        self.early, data, self.script = self.scripts
        self.data = json.loads(data)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, tag

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if tags[-1:] == ["script"]:
            self.scripts.append(data)
        for tag, attrs in self.open:
            if tag == "li" and attrs.get("class") == "item":
                entry = self.items.setdefault(attrs["id"], {"text": "", "sum": []})
                entry["text"] += data
                if "data" in tags:
                    entry["sum"].append((float(self.open[-1][1]["value"]), data))

    def all(self, name):
        return [attrs for tag, attrs in self.elements if tag == name]


def render(tmp_path, explanations, prototypes, about=None, **options):
    path = tmp_path / "page.html"
    write_page(path, explanations, prototypes, about, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_shows_sums_that_are_the_logits(tmp_path, made):
    explanations, prototypes = made
    _, page = render(tmp_path, explanations, prototypes)
    assert len(page.items) == len(explanations) == 14
    for i, e in enumerate(explanations, 1):
        values = page.items[f"image-{i}"]["sum"]
        assert len(values) == len(e.shown) + 3  # rest, bias, logit
        exact = [value for value, _ in values]
        assert abs(sum(exact[:-1]) - exact[-1]) <= 1e-3
        assert exact[-1] == e.logit
        read = [float(text.replace("\N{MINUS SIGN}", "-")) for _, text in values]
        assert abs(sum(read[:-1]) - read[-1]) <= 1e-3  # and what is printed adds up too
        assert f"rest of {e.rest_count:,} channels" in page.items[f"image-{i}"]["text"]


def test_page_stands_alone(tmp_path, gathered):
    explanations, prototypes, units = gathered
    side = Side("r", explanations, prototypes, units)
    about = About(summary=[{"head": "x", "accuracy": 0.5}])
    text, page = render(tmp_path, explanations, prototypes, about, side=side)
    links = [a[n] for _, a in page.elements for n in ("src", "href", "srcset", "action") if n in a]
    links += [picture["uri"] for picture in page.data["pictures"]]
    assert len(links) > 40
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for link in links:
        assert link.startswith(("data:image/", "#")), link
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).load()
    bare = re.sub(r"base64,[^\"]*", "", text).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|eval\(|innerHTML", bare)
    assert page.all("link") == page.all("iframe") == []
    # the policy lets these very scripts run, and no other
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    early, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (page.early, page.script)
    )
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{early}' 'sha256-{script}'"
    )


def test_page_is_accessible(tmp_path, made):
    _, page = render(tmp_path, *made)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-controls"):
        assert all(a[name] in ids for _, a in page.elements if name in a)
    for attrs in page.all("button"):
        assert attrs["type"] == "button"


def test_a_picture_is_stored_once(tmp_path, gathered):
    explanations, prototypes, units = gathered
    side = Side("r", explanations, prototypes, units)
    text, page = render(tmp_path, explanations, prototypes, side=side)
    pictures = [p["uri"] for p in page.data["pictures"]] + [a["src"] for a in page.all("img")]
    run = page.data["runs"][0]
    shown = sum(len(kept) for sides in run["prototypes"].values() for kept in sides)
    assert len(page.data["pictures"]) <= len(prototypes.files) < shown
    assert all(text.count(uri) == 1 for uri in set(pictures))
    assert all(image["uri"] is None for image in run["images"])


def test_wrong_predictions_are_marked(tmp_path, made):
    explanations, prototypes = made
    _, page = render(tmp_path, explanations, prototypes)
    items = [a for a in page.all("li") if a.get("class") == "item"]
    for i, (e, item) in enumerate(zip(explanations, items, strict=True), 1):
        text = page.items[f"image-{i}"]["text"]
        assert item["data-verdict"] == ("right" if e.correct else "wrong")
        assert ("✗ Wrong" in text) == (not e.correct)
        assert ("✓ Correct" in text) == e.correct
        assert e.correct or f"it is {e.true_name}" in text


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}\u202e😀</script><!--"


def hostile(explanations, prototypes):
    """The first explanations and the prototypes with names that would be markup."""
    prototypes.classes = (EVIL, "b")
    prototypes.files = [f"{file[:-4]}/{EVIL}.png" for file in prototypes.files]
    first = replace(
        explanations[0],
        class_name=EVIL,
        class_index=0,
        classes=(EVIL, "b"),
        true_name=EVIL + "!",
        path=f"/tmp/{EVIL}.png",
        notes=(EVIL,),
    )
    about = About(
        title=EVIL, summary=[{EVIL: EVIL}], facts={EVIL: EVIL}, notices=[EVIL], chosen=EVIL,
        attribution=EVIL, standing=Standing((EVIL, "b"), torch.tensor([[1, 2], [3, 4]])),
    )  # fmt: skip
    return [first, replace(explanations[1], classes=(EVIL, "b"))], prototypes, about


def test_names_cannot_become_markup(tmp_path, made):
    text, page = render(tmp_path, *hostile(*made))
    assert page.all("script") == [{}, {"type": "application/json", "id": "data"}, {}]
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert not any(n.startswith("on") for _, a in page.elements for n in a)
    assert "49" not in page.items["image-1"]["text"].split("}}")[0]
    assert EVIL in page.items["image-1"]["text"]  # shown as the text it is
    assert page.data["runs"][0]["classes"] == [EVIL, "b"]


def test_lost_and_corrupt_prototypes_become_placeholders(tmp_path, made, image_folder):
    explanations, prototypes = made
    kept = prototypes.of(explanations[0].shown[0].channel, 1)
    image_folder.joinpath(kept[0].file).unlink()
    image_folder.joinpath(kept[1].file).write_bytes(b"\x89PNG\r\n")
    _, page = render(tmp_path, explanations[:1], prototypes)
    missing = {picture["missing"] for picture in page.data["pictures"]}
    assert missing == {"", "file is missing", "file cannot be read"}


def test_other_heads_and_bad_arguments(tmp_path, made):
    explanations, prototypes = made
    with pytest.raises(ValueError, match="explanations is empty"):
        write_page(tmp_path / "a.html", [], prototypes)
    channels = prototypes.channels
    other = replace(explanations[0], rest_count=explanations[0].rest_count + 1)
    match = f"a head with {channels} channels, the explanation of one with {channels + 1}"
    with pytest.raises(ValueError, match=match):
        write_page(tmp_path / "a.html", [other], prototypes)
    with pytest.raises(ValueError, match="two explains 1 images, the page has 2"):
        write_page(
            tmp_path / "a.html", explanations[:2], prototypes,
            compared=[Side("two", explanations[:1], prototypes)],
        )  # fmt: skip
    assert not (tmp_path / "a.html").exists()


def test_summary_and_facts(tmp_path, made):
    rows = [
        {"head": "linear probe", "accuracy": 0.91234, "explanation_size": None, "loss": 0.25},
        {"head": "InfoDisent", "accuracy": 0.9, "explanation_size": 52.0, "images": 1234},
    ]
    text, _ = render(tmp_path, *made, About(summary=rows, facts={"backbone": "b"}))
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text)
    assert cells[:5] == [
        "head",
        "accuracy",
        "channels for 95 % of the logit (median)",
        "loss",
        "images",
    ]
    assert cells[5:10] == ["linear probe", "91.2%", "–", "0.250", "–"]
    assert cells[10:15] == ["InfoDisent", "90.0%", "52", "–", "1,234"]
    text, page = render(tmp_path, *made, About(summary={"accuracy": 0.5}, notices=["it is so"]))
    assert "<dt>accuracy</dt><dd>50.0%</dd>" in text
    assert "it is so" in text
    assert page.all("table") == []


def test_standing_is_a_matrix_or_its_largest_mistakes(tmp_path, made):
    counts = torch.tensor([[7, 1], [2, 10]])
    text, page = render(tmp_path, *made, About(standing=Standing(("a", "b"), counts)))
    assert "85.0% ± 8.0%" in text  # 17 of 20, sqrt(0.85 * 0.15 / 20)
    assert [a["class"] for a in page.all("td") if "hit" in a.get("class", "")] == ["num hit"] * 2
    rows = re.findall(r"<bdi>(.)</bdi></th>(?:<td[^>]*>([^<]*)</td>){3}", text)
    assert rows == [("a", "77.8%"), ("b", "90.9%")]  # right where said
    many = MATRIX_CLASSES + 1
    counts = torch.eye(many, dtype=torch.int64) * 3
    counts[4, 2] = 5
    known = Standing(tuple(f"c{i}" for i in range(many)), counts)
    text, _ = render(tmp_path, *made, About(standing=known))
    assert 'class="confusion"' not in text
    assert re.search(r"<bdi>c4</bdi></td><td><bdi>c2</bdi></td><td class=\"num\">5</td>", text)


def test_units_are_called_what_the_head_calls_them(tmp_path, made):
    explanations, prototypes = made
    explanations = [replace(e, unit="prototype") for e in explanations]
    about = About(summary=[{"head": "x", "explanation_size": 5.0}])
    text, page = render(tmp_path, explanations, prototypes, about)
    body = re.sub(r"<(style|script)[ >].*?</\1>", "", text, flags=re.DOTALL)
    assert "channel" not in re.sub(r"base64,[^\"]*", "", body).lower()
    assert "channel" not in page.script.lower()  # the script has words of its own for none
    first = explanations[0].shown[0].channel
    assert f"prototype {first}" in page.items["image-1"]["text"]
    assert '<th scope="col" class="num">prototypes for 95 % of the logit (median)</th>' in text


def test_what_was_done_to_an_image_stands_below_it(tmp_path, made):
    explanations, prototypes = made
    e = replace(explanations[0], notes=("the middle 77 %", "<b>grey"))
    text, page = render(tmp_path, [e], prototypes)
    assert "the middle 77 %" in page.items["image-1"]["text"]
    assert "&lt;b&gt;grey" in text


def test_sources_of_the_page_are_packaged():
    folder = Path(infodisent.__file__).parent
    project = (folder.parent / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.search(r"package-data\]\ninfodisent = \[(.*?)\]", project, re.S)[1].split(", ")
    sources = [folder / "report" / "page.html.j2", *(folder / "report" / "page").iterdir()]
    assert len(sources) > len(SCRIPTS)
    for source in sources:
        name = source.relative_to(folder).as_posix()
        assert any(fnmatch.fnmatch(name, pattern.strip('"')) for pattern in patterns), name


def test_an_abstention_is_neither_right_nor_wrong(tmp_path, made):
    explanations, prototypes = made
    silent = {"abstained": True, "supporting": (), "opposing": (), "decisions": ()}
    right = next(e for e in explanations if e.correct)
    quiet = replace(right, **silent, rest_count=right.channels, unit="prototype")
    assert quiet.correct is None
    shown = [quiet, replace(right, unit="prototype")]
    text, page = render(tmp_path, shown, prototypes)
    assert "1 predicted correctly and 0 not; the model abstains on 1." in text
    items = [a["data-verdict"] for a in page.all("li") if a.get("class") == "item"]
    assert items == ["abstained", "right"]
    words = page.items["image-1"]["text"]
    assert f"Abstains: no class is supported — it is {right.true_name}" in words
    assert "predicted class" not in words
    assert "✓" not in words
    drawn = " ".join(t.get_text() for t in explanation_figure(quiet, prototypes).findobj(Text))
    assert f"Abstains; shown is {right.class_name}" in drawn
    assert "predicted: no class" in drawn
    assert "correct" not in drawn
    assert "wrong" not in drawn


def test_equal_classes_stand_in_their_own_order(made):
    e = made[0][0]
    many = replace(
        e, classes=tuple("abcdefgh"), logits=torch.zeros(8), probabilities=torch.full((8,), 1 / 8)
    )
    assert [name for name, _ in top_classes(many)] == ["a", "b", "c"]
    assert many.predicted_name == "a"


def test_bytes_that_are_no_text_are_spelt_the_same_everywhere(tmp_path, made):
    explanations, prototypes = made
    name = "caf\udce9"
    e = replace(explanations[0], classes=(name, "b"), class_index=0, class_name=name)
    text, page = render(tmp_path, [e], prototypes)
    assert page.data["runs"][0]["classes"] == [r"caf\udce9", "b"]
    assert r"<bdi>caf\udce9</bdi>" in text
