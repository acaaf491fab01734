"""Numbers, pictures and texts as they stand inside a page."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}

_NO_TEXT = re.compile("[\ud800-\udfff]")


def packed(
    values: Tensor,
    dtype: str = "<f4",
) -> str:
    """The numbers, row by row, as base64; `dtype` as NumPy spells it, little-endian."""
    array = np.ascontiguousarray(values.detach().cpu().numpy().astype(dtype))
    return base64.b64encode(array.tobytes()).decode()


def packed_steps(values: Tensor) -> dict[str, Any]:
    """Numbers >= 0 in 65,535 steps up to their largest: ``{"max": …, "q": base64 uint16}``.

    ``{"max": 0}`` where all are 0.
    """
    top = float(values.max()) if values.numel() else 0.0
    if not top:
        return {"max": 0}
    return {"max": top, "q": packed((values.double() / top * 65535).round(), "<u2")}


def packed_cells(index: Tensor, cells: int) -> str:
    """Cells, -1 for none, as bytes with 255 for none, or as uint16 with 65,535 for none."""
    dtype, none = ("u1", 255) if cells <= 255 else ("<u2", 65535)
    return packed(torch.where(index < 0, none, index), dtype)


def packed_rows(values: Tensor) -> dict[str, str]:
    """A table ``[K, U]``: ``{"dense": …}``, or, where half of it is 0, its other entries.

    Those are ``start`` (uint32, K + 1), ``column`` (uint32) and ``value`` (float32).
    """
    there = values != 0
    if int(there.sum()) * 2 > values.numel():
        return {"dense": packed(values)}
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), there.sum(1).cumsum(0)])
    return {
        "start": packed(counts, "<u4"),
        "column": packed(there.nonzero()[:, 1], "<u4"),
        "value": packed(values[there]),
    }


def data_uri(picture: Image.Image, quality: int = 82) -> str:
    """A picture as a JPEG inside the page."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def script_json(value: Any) -> str:
    """JSON that may stand in a ``script`` element: no letter of it can end the element.

    Bytes of a name that are no text are spelt ``\\udcff``, as in the rest of the page.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _NO_TEXT.sub(lambda m: f"\\\\u{ord(m[0]):04x}", text).translate(_ESCAPED)
