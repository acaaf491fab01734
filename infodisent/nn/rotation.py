"""`Rotation`: the learned rotation, by either parametrisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.checks import check_choice, check_positive
from infodisent.ops.register import once
from infodisent.polynomials.plans import PRECISIONS

PARAMETRIZATIONS = ("exp", "lie")


class Rotation(nn.Module):
    """A learned rotation of C channels, ``U = exp(A - A^T) base``.

    A starts at zero, so U starts at the identity. In evaluation without gradients U is computed
    once and kept until A changes.

    Args:
        num_features: number of channels C >= 1.
        parametrization: "exp": ``base`` is the identity and there is none stored; A is all there
            is. "lie": dynamic trivialisation (Lezcano-Casado, "Trivializations for gradient-based
            optimization on manifolds", NeurIPS 2019). Whatever an optimiser writes into A is moved
            into ``base`` before the next training forward, and A returns to zero, where U and the
            gradient cost next to nothing: about 4 products of C x C a step and not 10 to 20. Any
            torch optimiser works unchanged; its state (Adam's averages) then refers to directions
            at the present U. It takes another path than "exp" does, so results differ. Weight decay
            on A does nothing under "lie", since A is zero when it is applied.
        precision: of the exponential, see `infodisent.ops.rotation`.
        device, dtype: of the parameter A, ``[C, C]``.

    Attributes:
        A: parameter ``[C, C]``.
        base: buffer ``[C, C]``, "lie" only. Kept orthogonal: every `REORTHOGONALIZE` moves one
            Newton-Schulz step ``U <- U - U (U^T U - I) / 2`` (2 products) takes the rounding out.
        moves: buffer, int64, "lie" only: how often A was moved into the base.

    Raises:
        ValueError: a size below 1, unknown `parametrization` or `precision`.
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
        self._cached_for: tuple[Tensor, ...] | None = None

    def forward(self) -> Tensor:
        """U, ``[C, C]``. Rotate a pixel's channels x by ``U @ x``."""
        if torch.is_grad_enabled() and self.A.requires_grad and not torch.onnx.is_in_onnx_export():
            if self._may_move():
                self.move_to_base()
                u: Tensor = _AtZero.apply(self.A, self.base)
                return u
            return self._compute(self.A)
        if torch.onnx.is_in_onnx_export():
            if self._cached.numel() == 0:
                raise RuntimeError("Rotation: call eval() on the model before torch.onnx.export")
            return self._cached
        if torch.compiler.is_compiling() or self.training or self.A.is_inference():
            return self._compute(self.A)
        self._refresh()
        return self._cached

    def _may_move(self) -> bool:
        # A is written to only where an optimiser would: on the module's own leaf, in training. A
        # traced graph or a substituted A (torch.func.functional_call) gets the general formula.
        return (
            self.parametrization == "lie"
            and self.training
            and self.A.is_leaf
            and not torch.compiler.is_compiling()
            and not self.A.is_inference()
        )

    @torch.no_grad()
    def move_to_base(self) -> None:
        """``base <- exp(A - A^T) base, A <- 0``; U stays as it is. "lie" only; called by forward.

        Raises:
            RuntimeError: under "exp" there is no base.
        """
        if self.parametrization != "lie":
            raise RuntimeError('Rotation: there is no base under parametrization="exp"')
        if not self.A.any():
            return
        base = self._compute(self.A)
        self.moves += 1
        if int(self.moves) % self.REORTHOGONALIZE == 0:
            base = _orthogonalized(base)
        self.base.copy_(base)
        self.A.zero_()

    def _compute(self, a: Tensor) -> Tensor:
        u = ops.rotation(a, precision=self.precision)
        return u @ self.base if self.parametrization == "lie" else u

    def _state(self) -> tuple[Tensor, ...]:
        return (self.A, self.base) if self.parametrization == "lie" else (self.A,)

    def _refresh(self) -> None:
        # A is compared by value: C^2 reads are little beside the C^3 work that follows, and writes
        # through .data or a numpy view leave no other trace.
        state, known = self._state(), self._cached_for
        if known is None or any(
            old.dtype != new.dtype or old.device != new.device or not torch.equal(old, new)
            for old, new in zip(known, state, strict=True)
        ):
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
        self._cached, self._cached_for = self.A.new_empty(0), None
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
        n = grad @ base.mT  # dU = (dA - dA^T) base
        return n - n.mT, None


def _orthogonalized(u: Tensor) -> Tensor:
    """One Newton-Schulz step towards the nearest orthogonal matrix; squares the deviation."""
    wide = u.float() if u.dtype in (torch.float16, torch.bfloat16) else u
    deviation = wide.mT @ wide
    deviation.diagonal().sub_(1)
    return torch.addmm(wide, wide, deviation, alpha=-0.5).to(u.dtype)
