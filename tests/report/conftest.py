"""Explanations of a random head, for figures and pages, and a page open in a browser."""

from __future__ import annotations

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

from .browser import Browser

CLASSES = ("blue", "green", "red")
IMAGES = 9
"""Of the page that a browser opens."""


def randomise(head):
    """Weights of every sign and size, the same every time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture
def gathered(store, tiny):
    """Fourteen explanations, right and wrong ones, the prototypes, and all units."""
    randomise(tiny.head)
    tiny.eval()
    prototypes = find_prototypes(tiny.head, store, k=3, progress=False)
    names = [store.classes[i] for i in store.labels.tolist()]
    units = Units(tiny.head, 14)
    explanations = explain_many(
        tiny,
        [*store.files[:8], *store.files[-6:]],
        true_names=[*names[:8], *names[-6:]],
        classes=store.classes,
        progress=False,
        on_features=units,
    )
    assert {e.correct for e in explanations} == {True, False}
    return explanations, prototypes, units


@pytest.fixture
def made(gathered):
    """The explanations and the prototypes."""
    return gathered[:2]


def explained(model, store, files, true):
    units = Units(model.head, len(files))
    options = {"classes": CLASSES, "true_names": true, "progress": False}
    explanations = explain_many(model, files, on_features=units, **options)
    prototypes = find_prototypes(model.head, store, k=3, progress=False)
    return explanations, prototypes, units


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def opened(browser, page):
    """The page just opened, light and without a pointer on it; no script may fail."""
    browser.open(page[0])
    yield browser
    assert browser.errors == []
