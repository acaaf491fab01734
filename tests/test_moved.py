"""Names of version 0.1 still import."""

from __future__ import annotations

import importlib
import sys

import pytest

from infodisent.moved import MOVED
from tests.forks import forked


@pytest.mark.parametrize("name", sorted(MOVED))
def test_the_module_of_today_under_its_old_name(name):
    sys.modules.pop(f"infodisent.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"infodisent.{name} is infodisent.{MOVED[name]}"):
        old = importlib.import_module(f"infodisent.{name}")
    today = importlib.import_module(f"infodisent.{MOVED[name]}")
    assert old is today
    assert today.__name__ == today.__spec__.name == f"infodisent.{MOVED[name]}"


WROTE = [
    "from infodisent import pipeline; pipeline.fit, pipeline.open_run, pipeline.load_backbone",
    "from infodisent.images import ImageItem, ImageSet, load_image, scan_folder, split_items",
    "from infodisent.train import FitConfig, fit_head, new_head",
    "from infodisent.features import FeatureStore, extract",
    "from infodisent.evaluate import linear_probe, evaluate_head, explanation_sizes",
    "from infodisent.publish import report_run, report_images",
    "from infodisent.explanation import Explanation, explain_many, cell_box",
    "from infodisent.prototypes import Prototypes, find_prototypes",
    "from infodisent.backbone import Backbone; from infodisent.plan import HeadPlan",
    "from infodisent.preprocess import transform_config, transform_from",
    "from infodisent.nn import InfoDisentHead; from infodisent import InfoDisentHead as top; "
    "assert InfoDisentHead is top",
    "from infodisent import attach, explain, load, save, Explanation, SparsePool",
    "from infodisent.backends import use_backend, set_backend, explain, NAMES, BackendError",
]


def test_what_people_wrote():
    """Each in a process that finds torch imported, and nothing of the package."""
    forked("import torch", WROTE, "-W", "ignore")


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'infodisent\.nowhere'"):
        importlib.import_module("infodisent.nowhere")
