"""Labels of a data set in memory -> indices of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from infodisent.data.items import listed


class Labels:
    """Labels one after another; their kind is that of the first.

    Args:
        names: of the classes, which an int is an index into; None where the data set brings none.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = None if names is None else [str(name) for name in names]
        self.notices: list[str] = []
        self._values: list[int | str | tuple[int, ...]] = []
        self._width = 0
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise ValueError(f"class names must differ, got {listed(self.names, 8)}")

    def add(self, label: Any, where: str) -> None:
        """One more label.

        Raises:
            ValueError: it is none, of another kind than those before, or out of range.
        """
        value = self._value(label, where)
        kinds = {type(v) for v in (*self._values[:1], value)}
        if len(kinds) > 1:
            raise ValueError(f"{where} is {label!r}, those before are {self._values[0]!r} …")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{where} is {value}, must be >= 0")
        known = self.names
        if known is not None:
            if isinstance(value, int) and value >= len(known):
                raise ValueError(f"{where} is {value}, there are {len(known)} class names")
            if isinstance(value, str) and value not in known:
                raise ValueError(f"{where} is {value!r}, the classes are {listed(known, 8)}")
        self._values.append(value)

    def _value(self, label: Any, where: str) -> int | str | tuple[int, ...]:
        if isinstance(label, str):
            return label
        if isinstance(label, Tensor):
            label = label.detach().cpu().numpy()
        try:
            array = np.asarray(label)
        except ValueError:
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "biuf" or not array.size or array.ndim > 1:
            raise ValueError(
                f"{where} is a {type(label).__name__}, expected an int, text, or a vector of zeros "
                "and ones"
            )
        if array.size == 1:
            number = float(array.reshape(-1)[0])
            if not number.is_integer():
                raise ValueError(f"{where} is {number:g}, expected the index of a class")
            return int(number)
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"{where} is a vector, which must hold zeros and ones: {array}")
        if self._width not in (0, array.size):
            raise ValueError(f"{where} has {array.size} numbers, those before {self._width}")
        self._width = array.size
        return tuple(np.flatnonzero(array).tolist())

    def finish(self) -> tuple[tuple[str, ...], list[int | tuple[int, ...]], bool]:
        """Class names, a label for every image, and whether there are several labels an image.

        Raises:
            ValueError: fewer than two classes, or another number of names than a vector has.
        """
        if self._width:
            return self._from_vectors()
        names = self.names or [str(v) for v in sorted(set(self._values))]  # type: ignore[type-var]
        if len(names) < 2:
            raise ValueError(f"the data set has the class {listed(names)} only, 2 are needed")
        index = {name: y for y, name in enumerate(names)}
        direct = self.names is not None
        labels: list[int | tuple[int, ...]] = [
            v if direct and isinstance(v, int) else index[str(v)] for v in self._values
        ]
        return tuple(names), labels, False

    def _from_vectors(self) -> tuple[tuple[str, ...], list[int | tuple[int, ...]], bool]:
        names = self.names or [str(y) for y in range(self._width)]
        if len(names) != self._width:
            raise ValueError(f"there are {len(names)} class names, labels have {self._width}")
        vectors = [v for v in self._values if isinstance(v, tuple)]
        if all(len(v) == 1 for v in vectors):
            self.notices.append("labels are vectors with a single one each: taken for classes")
            return tuple(names), [v[0] for v in vectors], False
        return tuple(names), list(vectors), True
