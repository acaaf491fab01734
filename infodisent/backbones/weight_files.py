"""Tensors out of a weights file, without running any code from it."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infodisent.files import read_safetensors

_PICTURES = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
}
_PICTURES |= {b"BM": "a BMP picture", b"II*\x00": "a TIFF picture", b"MM\x00*": "a TIFF picture"}
_OTHERS = {b"\x89HDF": "an HDF5 (Keras) file", b"\x93NUMPY": "a NumPy array", b"%PDF": "a PDF"}
_OTHERS |= {b"\x1f\x8b": "a gzip archive: unpack it", b"Rar!": "a RAR archive: unpack it"}
_OTHERS |= {
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"version https://git-lfs": "a Git LFS pointer",
}

# Averaged weights first, as timm has it; then the usual names of a model among other things.
_KEYS = [
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "state_dict"),
    *("model_state_dict", "model_state", "model", "module", "net", "network", "backbone"),
    *("weights", "params", "student"),
]
# Plain values that training scripts store beside their weights. Building one runs no code.
_HARMLESS: list[Any] = [argparse.Namespace, pathlib.PurePosixPath, pathlib.PosixPath, np.dtype]
_HARMLESS += [type(np.dtype(t)) for t in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
# numpy's function that makes a scalar has moved; a scalar's own pickle names it
_HARMLESS += [np.float64(0).__reduce__()[0]]


def read(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """The states in a file, each with what it was called there, the preferred first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, damaged, or one that holds more than tensors.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not a file"
        raise FileNotFoundError(f"{path} {what}")
    kind = _kind(path)
    if kind == "safetensors":
        return [_safetensors(path)]
    if kind:
        raise ValueError(f"{path} is not a weights file: {kind}")
    content = _torch(path)
    found = list(_states(content))
    if not found:
        keys = (
            f" (it has {', '.join(map(str, list(content)[:5]))})"
            if isinstance(content, Mapping)
            else ""
        )
        raise ValueError(f"{path} holds no named tensors, but a {type(content).__name__}{keys}")
    return found


def _kind(path: Path) -> str:
    """ "safetensors", "" for what may be PyTorch's, or in words what it is instead."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty"
    for start, name in {**_PICTURES, **_OTHERS}.items():
        if head.startswith(start):
            return f"it is {name}"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "it is a WebP picture"
    if len(head) > 8 and head[8:9] == b"{" and head[:8] != b"{" * 8:
        return "safetensors"
    if head.startswith((b"PK", b"\x80")):
        return ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith((b"{", b"[")):
        hint = (
            "an index of shards; load the shards and save one state_dict"
            if "index" in path.name
            else ""
        )
        return f"it is JSON{', ' if hint else ''}{hint}"
    if text.startswith(b"<"):
        return f"it is a web page or XML (it begins with {text[:20].decode(errors='replace')!r})"
    if path.suffix == ".safetensors":
        return "it is truncated or not a safetensors file"
    if all(31 < c < 127 or c in b"\r\n\t" for c in head):
        return f"it is text (it begins with {head[:20].decode(errors='replace')!r})"
    return f"it begins with {head[:8]!r}"


def _safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    tensors, metadata = read_safetensors(path)
    own = metadata.get("infodisent")
    if own is None:
        return "", tensors
    kind = json.loads(own).get("kind")
    if kind != "model":
        raise ValueError(f"{path} was written by infodisent and holds no backbone, but: {kind}")
    prefix = "backbone.model."
    backbone = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return "the backbone of an infodisent model", backbone


def _torch(path: Path) -> Any:
    """What torch.load makes of it, tensors and plain values only."""
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its readers fail in ways of their own
        text = str(error)
        refused = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", text)
        if "TorchScript" in text:
            raise ValueError(
                f"{path} is a TorchScript archive, which is code: where you trust it, save its "
                "weights, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
            ) from None
        if "Unsupported" in text or refused:
            name = (refused.group(1) or refused.group(2)) if refused else "an object"
            raise ValueError(
                f"{path} holds {name}, not only tensors, and would have to run code to be read. "
                "Where it was made, save the tensors alone: "
                "torch.save(model.state_dict(), 'weights.pth')"
            ) from None
        why = text.strip().split("\n")[0][:120] or type(error).__name__
        raise ValueError(f"{path} is truncated or not a PyTorch weights file ({why})") from None


def _states(
    content: Any, depth: int = 3, called: str = ""
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dictionaries of tensors in a file's content, best first."""
    if not isinstance(content, Mapping):
        return
    own = {n: t for n, t in content.items() if isinstance(n, str) and isinstance(t, Tensor)}
    nested = [k for k in content if isinstance(content[k], Mapping) and isinstance(k, str)]
    known = [k for k in _KEYS if k in nested]
    others = [k for k in nested if k not in known and "optim" not in k and "sched" not in k]
    if own and len(own) >= len(content) / 2:
        yield called, own
    if depth:
        for key in known + others:
            yield from _states(content[key], depth - 1, f"{called}.{key}".lstrip("."))
