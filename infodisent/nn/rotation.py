"""`Rotation`: the learned rotation, by either parametrisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.checks import check_choice, check_positive
from infodisent.ops.divided import divided_rotation, divides
from infodisent.ops.register import no_autocast, once
from infodisent.polynomials.plans import PRECISIONS
from infodisent.tracing import nothing_watches, transforming

PARAMETRIZATIONS = ("exp", "lie")


class Rotation(nn.Module):
    """A learned rotation of C channels, ``U = exp(A - A^T) base``.

    A starts at zero, so U starts at the identity. In evaluation without gradients U is computed
    once and kept until A changes.

    Args:
        num_features: number of channels C >= 1.
        parametrization: "exp": ``base`` is the identity and there is none stored; A is all there
            is. "lie": dynamic trivialisation (Lezcano-Casado, "Trivializations for gradient-based
            optimization on manifolds", NeurIPS 2019). `after_step`, and nothing else, moves what an
            optimiser wrote into A into ``base``; A returns to zero, where U and the gradient cost
            next to nothing: about 4 products of C x C a step and not 10 to 20. Away from zero the
            formula is computed as it stands, so that what evaluates at several points a step
            (LBFGS's line search, SAM) is right, and so is a loop that never calls `after_step`,
            which is as dear as "exp". Adam's averages then refer to directions at the present U.
            What remembers values of A over steps (Lookahead's slow weights, LBFGS's history) works
            too, but its memory then is of the last step alone; to keep all of it leave `after_step`
            out (of a head: call ``fc.project_()`` in its place). It takes another path than "exp"
            does, so results differ. Weight decay on A does nothing, since A is zero when it comes.
        precision: of the exponential, see `infodisent.ops.rotation`.
        device, dtype: of the parameter A, ``[C, C]``.

    Attributes:
        A: parameter ``[C, C]``.
        base: buffer ``[C, C]``, "lie" only. Kept orthogonal: every `REORTHOGONALIZE` moves one
            Newton-Schulz step ``U <- U - U (U^T U - I) / 2`` (2 products) takes the rounding out.
            The mean of several rotations, as an average of weights leaves it here (timm's
            ModelEmaV3, torch's AveragedModel with ``use_buffers=True``), is none: the nearest
            orthogonal matrix, their chordal mean, is used in its place.
        moves: buffer, int64, "lie" only: how often A was moved into the base.
        divided: the processes of a job compute U in training mode together where that is faster,
            see `infodisent.ops.divided`. A training sets it while all of them take the same step;
            false at first.

    Raises:
        ValueError: a size below 1, unknown `parametrization` or `precision`; when U is computed, a
            ``base`` that no orthogonal matrix is near.
    """

    REORTHOGONALIZE = 100

    _cached: Tensor
    base: Tensor
    moves: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        parametrization: str = "exp",
        precision: str = "full",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("Rotation", "num_features", num_features)
        check_choice("Rotation", "parametrization", parametrization, PARAMETRIZATIONS)
        check_choice("Rotation", "precision", precision, PRECISIONS)
        self.num_features = num_features
        self.parametrization, self.precision = parametrization, precision
        self.A = nn.Parameter(torch.zeros(num_features, num_features, device=device, dtype=dtype))
        if parametrization == "lie":
            self.register_buffer("base", torch.eye(num_features, device=device, dtype=dtype))
            self.register_buffer("moves", torch.zeros((), dtype=torch.int64, device=device))
        # A buffer, so that it follows .to() and so that exporters see U as a constant.
        self.register_buffer("_cached", torch.empty(0, device=device), persistent=False)
        self._forget()
        self.divided = False

    def _forget(self) -> None:
        self._cached_for: tuple[Tensor, ...] | None = None
        self._own: Tensor | None = None  # a base known to be orthogonal, as far as training asks
        self._project = False  # whether a graph has to project the base

    def forward(self) -> Tensor:
        """U, ``[C, C]``. Rotate a pixel's channels x by ``U @ x``."""
        if torch.is_grad_enabled() and self.A.requires_grad and not torch.onnx.is_in_onnx_export():
            if self.parametrization == "lie" and self._is_plain() and not self.A.any():
                with no_autocast(self.A):
                    u: Tensor = _AtZero.apply(self.A, self._orthogonal_base())
                return u
            return self._compute(self.A, together=True)
        if torch.onnx.is_in_onnx_export():
            if self._cached.numel() == 0:
                raise RuntimeError("Rotation: call eval() on the model before torch.onnx.export")
            return self._cached
        if (
            torch.compiler.is_compiling()
            or self.training
            or self.A.is_inference()
            or transforming()
        ):
            return self._compute(self.A, together=True)
        self._refresh()
        return self._cached

    def _is_plain(self) -> bool:
        """Whether A and the base are numbers to look at: nothing traces or transforms the call."""
        return not torch.compiler.is_compiling() and nothing_watches() and not self.A.is_inference()

    def after_step(self) -> None:
        """Call it after every step of the optimiser: moves A into the base under "lie"."""
        if self.parametrization == "lie":
            self.move_to_base()

    @torch.no_grad()
    def move_to_base(self) -> None:
        """``base <- exp(A - A^T) base, A <- 0``; U stays as it is. "lie" only; see `after_step`.

        Raises:
            RuntimeError: under "exp" there is no base.
        """
        if self.parametrization != "lie":
            raise RuntimeError('Rotation: there is no base under parametrization="exp"')
        if not self.A.any():
            return
        base = self._compute(self.A, together=True)
        self.moves += 1
        if int(self.moves) % self.REORTHOGONALIZE == 0:
            base = _orthogonalized(base)
        self.base.copy_(base)
        self.A.zero_()
        self._own, self._project = base, False

    def _compute(self, a: Tensor, together: bool = False) -> Tensor:
        together = together and self.divided and self.training and self._is_plain() and divides(a)
        u = (divided_rotation if together else ops.rotation)(a, precision=self.precision)
        if self.parametrization == "lie":
            with no_autocast(u):
                u = u @ self._orthogonal_base()
        return u

    def _orthogonal_base(self) -> Tensor:
        """The base, or the orthogonal matrix nearest to it where an average has been written there.

        In training only a large deviation counts, so that a run that goes on from a file, whose
        base is looked at, ends where an uninterrupted one does, which knows its own.
        """
        if not self._is_plain() or self.base.is_meta:
            return _steps(self.base) if self._project else self.base
        if self._own is not None and _same(self._own, self.base):
            if self.training:
                return self.base
        else:
            self._own = None
        with torch.no_grad():
            off = _deviation(self.base)
            near = off <= (MIXED if self.training else ROUNDING[self.base.dtype])
            self._project = off > MIXED
            if near and self.training:
                self._own = self.base.detach().clone()
            return self.base if near or math.isnan(off) else _polar(self.base)

    def _state(self) -> tuple[Tensor, ...]:
        return (self.A, self.base) if self.parametrization == "lie" else (self.A,)

    def _refresh(self) -> None:
        # A is compared by value: C^2 reads are little beside the C^3 work that follows, and writes
        # through .data or a numpy view leave no other trace.
        state, known = self._state(), self._cached_for
        if known is None or any(not _same(old, new) for old, new in zip(known, state, strict=True)):
            # never an inference tensor: one made in inference mode could not be used outside it
            with torch.inference_mode(False), torch.no_grad():
                self._cached = self._compute(self.A.detach())
                self._cached_for = tuple(t.detach().clone() for t in state)

    def train(self, mode: bool = True) -> Rotation:
        """As for any module; entering evaluation computes U, entering training drops it."""
        super().train(mode)
        if mode:
            self._cached, self._cached_for = self.A.new_empty(0), None
        elif not (self.A.is_meta or self.A.is_inference()):
            self._refresh()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Rotation:
        # U is never converted: half-rounded, it would not be the rotation of a widened A
        super()._apply(fn, recurse)
        self._cached = self.A.new_empty(0)
        self._forget()
        if not self.training and not (self.A.is_meta or self.A.is_inference()):
            self._refresh()
        return self

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return (
            f"num_features={self.num_features}, parametrization={self.parametrization!r}, "
            f"precision={self.precision!r}"
        )


class _AtZero(torch.autograd.Function):
    """``exp(A - A^T) base`` at A = 0: the value is there already, the gradient is one product."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, base: Tensor) -> Tensor:
        ctx.save_for_backward(base)
        return base.clone()

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (base,) = ctx.saved_tensors
        with no_autocast(base):
            n = grad @ base.mT  # dU = (dA - dA^T) base
        return n - n.mT, None


ROUNDING = {
    torch.float64: 1e-13,
    torch.float32: 5e-6,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
"""Largest entry of ``U^T U - I`` that is left as it is: what rounding does."""
MIXED = 1e-3
"""Beyond this a base is the mean of several rotations: rounding alone never gets there."""


def _same(old: Tensor, new: Tensor) -> bool:
    return old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)


def _wide(u: Tensor) -> Tensor:
    return u.float() if u.dtype in (torch.float16, torch.bfloat16) else u


def _deviation(u: Tensor) -> float:
    """Largest entry of ``U^T U - I``; NaN where U has one."""
    wide = _wide(u)
    deviation = wide.mT @ wide
    deviation.diagonal().sub_(1)
    return deviation.abs().max().item()


def _orthogonalized(u: Tensor) -> Tensor:
    """One Newton-Schulz step towards the nearest orthogonal matrix; squares the deviation."""
    wide = _wide(u)
    deviation = wide.mT @ wide
    deviation.diagonal().sub_(1)
    return torch.addmm(wide, wide, deviation, alpha=-0.5).to(u.dtype)


def _steps(u: Tensor, count: int = 12) -> Tensor:
    """Newton-Schulz steps whose number does not depend on values, for a graph."""
    wide = _wide(u)
    eye = torch.eye(len(u), dtype=wide.dtype, device=u.device)
    for _ in range(count):
        wide = wide - wide @ (wide.mT @ wide - eye) / 2
    return wide.to(u.dtype)


def _polar(u: Tensor) -> Tensor:
    """The nearest orthogonal matrix; from a mean of rotations, whose singular values are <= 1.

    Raises:
        ValueError: no step brings it near one.
    """
    wide = _wide(u)
    before = off = _deviation(wide)
    for _ in range(40):
        if not off > ROUNDING[wide.dtype]:
            break
        wide = _orthogonalized(wide)
        off = _deviation(wide)
    if not off <= 2 * ROUNDING[wide.dtype]:
        raise ValueError(
            f"Rotation: base is off by {before:.1e} from an orthogonal matrix and none is near: it "
            'is no mean of rotations; load the weights again, or average "exp" instead of "lie"'
        )
    return wide.to(u.dtype)
