"""What a backend is: its name, its objections, who computes its gradient, who stands in for it.

A backend is a folder of this package (or one file), with one file for each operator's stem that it
has kernels for, and one object of a subclass of `Backend`, listed in `infodisent.backends.table`.
What the functions of a stem are is said in `infodisent.backends.operators`; a backend names the
modules that have them in `Backend.kernels`, and has them then as its own methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infodisent.backends import operators
from infodisent.backends.operators import Kernels


@dataclass(frozen=True)
class Call:
    """What a backend looks at to decide: the operator's stem, the device, and the dtype.

    `size` is B, P and C of the map, where it is known and there is something that depends on it.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    size: tuple[int, int, int] | None = None


def _handed_on(module: object, name: str) -> Callable[..., Any]:
    """A method that calls the function of this name in a module, looked up when it is called."""

    def method(backend: Backend, *arguments: Any, **options: Any) -> Any:
        return getattr(module, name)(*arguments, **options)

    method.__name__, method.__doc__ = name, getattr(module, name).__doc__
    return method


class Backend(
    operators.RotationKernels,
    operators.MxPoolKernels,
    operators.RotatePoolKernels,
    operators.HeadKernels,
    operators.SimilarityPoolKernels,
    operators.SoftmaxPoolKernels,
    operators.SoftmaxAlignmentKernels,
):
    """One way to compute the operators.

    Attributes:
        name: as it is asked for; with a precision ``"<backend>:<precision>"``.
        summary: what it is and where it runs, one line for tables.
        stems: operators that it has kernels for.
        kernels: modules with the functions of these, where they are not methods of the class.
        stand_in: name of the backend that takes its place for all other operators. A model uses
            several operators, and one choice is for all of them.
        precisions: names of what `at` takes.
        needs_gpu: nothing is served without one.
    """

    name: str
    summary: str
    stems: tuple[str, ...] = ()
    kernels: Kernels = Kernels()
    stand_in: str = ""
    precisions: tuple[str, ...] = ()
    needs_gpu: bool = False

    def __init_subclass__(cls) -> None:
        """Take over the functions of the modules that the class names itself.

        Raises:
            TypeError: modules for an operator that is not among its stems, or without a function.
        """
        super().__init_subclass__()
        if "kernels" not in vars(cls):
            return
        for stem in operators.STEMS:
            module = getattr(cls.kernels, stem)
            if module is None:
                continue
            if stem not in cls.stems:
                raise TypeError(f"{cls.__name__} has kernels of {stem}, which is not in its stems")
            for name in operators.functions(stem):
                if not callable(getattr(module, name, None)):
                    raise TypeError(f"{cls.__name__}: the kernels of {stem} have no {name}")
                setattr(cls, name, _handed_on(module, name))

    def at(self, precision: str) -> Backend:
        """The same at one of its `precisions`."""
        raise ValueError(f"backend {self.name!r} has no precision {precision!r}")

    def objection(self, call: Call) -> str | None:
        """Why it cannot serve a call, or None."""
        raise NotImplementedError

    def reservation(self, call: Call) -> str | None:
        """Why ``auto`` does not take it for a call that it could serve, or None."""
        return None

    def decides_by_size(self, device: torch.device) -> bool:
        """Whether `reservation` has different answers for different sizes on this device."""
        return False

    def map_objection(
        self,
        x: Tensor,  # [B, P, C]
        u: Tensor,  # [C, C]
    ) -> str | None:
        """Why ``auto`` does not take it for these very tensors, which a `Call` does not show."""
        return None

    def gradient(self, call: Call) -> str:
        """Name of the backend that computes the gradient of what this one computed."""
        return self.name

    def describe(self) -> str | None:
        """What was built or loaded here, or why there is nothing; None where nothing is needed."""
        return None
