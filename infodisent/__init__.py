"""InfoDisent: an interpretable head for any pretrained image classifier.

    import infodisent

    model = infodisent.attach("resnet50", num_classes=200, pretrained=True)

`infodisent.ops` has the operators, `infodisent.nn` the modules, `infodisent.reference` the formulas
to read. ``infodisent --help`` lists the commands.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from infodisent.moved import MOVED, install
from infodisent.version import __version__

if TYPE_CHECKING:
    from infodisent.classifier import InfoDisentClassifier, attach
    from infodisent.contract import SparsePool
    from infodisent.explanations.local import Explanation, explain
    from infodisent.methods.infodisent import InfoDisentHead
    from infodisent.training.checkpoint import load, save

install()

# Imported on first use: `import infodisent.ops` must not load timm, matplotlib and the rest.
_WHERE = {
    "attach": "classifier",
    "InfoDisentClassifier": "classifier",
    "InfoDisentHead": "methods.infodisent",
    "SparsePool": "contract",
    "explain": "explanations.local",
    "Explanation": "explanations.local",
    "load": "training.checkpoint",
    "save": "training.checkpoint",
}
__all__ = [
    "Explanation",
    "InfoDisentClassifier",
    "InfoDisentHead",
    "SparsePool",
    "__version__",
    "attach",
    "explain",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"infodisent.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    if name in MOVED:  # in version 0.1 a module was an attribute once something had imported it
        return importlib.import_module(f"infodisent.{name}")
    raise AttributeError(f"module 'infodisent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
