"""Import torchvision where its compiled operators do not match the installed torch.

A CUDA build of torchvision beside a CPU build of torch fails at import with ``operator
torchvision::nms does not exist``: its shared library does not load, and the Python half then
registers a fake for an operator nobody defined. Everything this package needs from torchvision
(transforms, model definitions) is pure Python, so declaring the two missing operator names is
enough. Where torchvision imports by itself, nothing is changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import torch

_MISSING = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a Library unregisters its names when collected


def torchvision_operators() -> bool | None:
    """Whether torchvision's compiled operators load beside this torch, without importing it.

    That import takes seconds. None where torchvision is not installed.
    """
    if "torchvision" in sys.modules:
        return not ensure_torchvision()
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    libraries = [path for path in folder.glob("_C*") if path.suffix in (".so", ".pyd")]
    try:
        for path in libraries:
            torch.ops.load_library(str(path))
    except OSError:
        return False
    return bool(libraries)


def ensure_torchvision() -> bool:
    """Make ``import torchvision`` work, and say whether the remedy was needed.

    Returns:
        True where the operator names had to be declared, False where torchvision imported as is
        (or is not installed, in which case the later import reports that itself).

    Raises:
        RuntimeError: torchvision fails to import for any other reason, such as versions that do not
            belong together; the message names both.
    """
    if "torchvision" in sys.modules:
        return bool(_libraries)
    try:
        importlib.import_module("torchvision")
        return False
    except ModuleNotFoundError:
        return False
    except (RuntimeError, OSError, ImportError, AttributeError) as error:
        if _MISSING not in str(error):
            raise RuntimeError(_explained(error)) from error
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]  # half-imported: a second import would find them and fail differently
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    _libraries.append(library)
    importlib.import_module("torchvision")
    return True


def _explained(error: Exception) -> str:
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"torchvision {version} cannot be imported beside torch {torch.__version__} ({reason}): "
        "they are not of one release or build; install both again, together and from one place"
    )
