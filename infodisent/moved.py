"""Module names of version 0.1, which were flat: they still import, as the modules of today.

People have ``from infodisent.images import scan_folder`` in their notebooks. Only names that Python
finds nowhere else get here, and nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "_files": "files",
    "_native_cuda": "backends.cuda.module",
    "_torchvision": "backbones.torchvision_import",
    "backbone": "backbones.backbone",
    "checkpoint": "training.checkpoint",
    "evaluate": "evaluation.accuracy",
    "explanation": "explanations.local",
    "features": "data.features",
    "images": "data.images",
    "pipeline": "training.run",
    "plan": "backbones.plan",
    "preprocess": "backbones.preprocess",
    "prototypes": "explanations.prototypes",
    "publish": "report.publish",
    "train": "training.fit",
}
"""Old name to new, both below ``infodisent``."""


class _Alias(Loader):
    """Loads a module of today under a name of yesterday: the same object, not a copy."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; the import machinery has only put another spec into it."""
        module.__spec__ = self._spec


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != "infodisent" or name not in MOVED:
            return None
        today = f"infodisent.{MOVED[name]}"
        warnings.warn(f"{fullname} is {today} now", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(today))


def install() -> None:
    """Let the names import, after everything else that can find a module."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
