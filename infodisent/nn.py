"""Modules: `Rotation`, `MxPool`, `NonNegativeLinear`, and the whole head, `InfoDisentHead`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from infodisent import ops
from infodisent._layout import check_input_fmt
from infodisent.ops import SparsePool
from infodisent.sparse._plans import PRECISIONS

NONNEG = ("relu", "softplus", "abs", "projection")


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
        _check_positive("Rotation", "num_features", num_features)
        _check_choice("Rotation", "parametrization", parametrization, PARAMETRIZATIONS)
        _check_choice("Rotation", "precision", precision, PRECISIONS)
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
    @once_differentiable
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


class MxPool(nn.Module):
    """`infodisent.ops.mx_pool` as a module: a map to a `SparsePool`."""

    def __init__(self, *, input_fmt: str = "NCHW", num_prefix_tokens: int = 0) -> None:
        super().__init__()
        check_input_fmt("MxPool", input_fmt, num_prefix_tokens)
        self.input_fmt, self.num_prefix_tokens = input_fmt, num_prefix_tokens

    def forward(self, y: Tensor) -> SparsePool:
        """Pool a map of layout `input_fmt`."""
        return ops.mx_pool(y, input_fmt=self.input_fmt, num_prefix_tokens=self.num_prefix_tokens)

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return f"input_fmt={self.input_fmt!r}, num_prefix_tokens={self.num_prefix_tokens}"


class NonNegativeLinear(nn.Module):
    """A linear layer whose effective weight W ``[K, C]`` is nonnegative.

    Args:
        in_features: C.
        out_features: K.
        bias: add a bias ``[K]`` (unconstrained); off by default, so that the contributions alone
            make the logit.
        nonneg: how W >= 0 is kept. "relu": ``W = ReLU(weight)``; "softplus":
            ``W = log(1 + exp(weight))``; "abs": ``W = |weight|``; "projection": ``W = max(weight,
            0)`` whose gradient passes to negative entries too, so that none is stuck at zero; call
            `project_` after every optimiser step to make that exact projected descent.
        device, dtype: of the parameters.

    Raises:
        ValueError: unknown `nonneg`, or a size below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        nonneg: str = "projection",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_positive("NonNegativeLinear", "in_features", in_features)
        _check_positive("NonNegativeLinear", "out_features", out_features)
        _check_choice("NonNegativeLinear", "nonneg", nonneg, NONNEG)
        self.in_features, self.out_features, self.nonneg = in_features, out_features, nonneg
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype)
        )
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """W starts normal around 1/C: every channel supports every class, a little and alike."""
        if self.weight.is_meta:
            return
        start = torch.empty_like(self.weight, dtype=torch.float32).normal_(1, 0.1).clamp_min_(1e-3)
        start /= self.in_features
        self.weight.copy_(torch.log(torch.expm1(start)) if self.nonneg == "softplus" else start)
        if self.bias is not None:
            self.bias.zero_()

    def effective_weight(self) -> Tensor:
        """W ``[K, C]``, nonnegative, differentiable."""
        if self.nonneg == "relu":
            return self.weight.clamp_min(0)
        if self.nonneg == "softplus":
            return nn.functional.softplus(self.weight)
        if self.nonneg == "abs":
            return self.weight.abs()
        # the value is clamped, the gradient is that of the weight itself
        return self.weight + (self.weight.clamp_min(0) - self.weight).detach()

    def operator_weight(self) -> tuple[Tensor, str]:
        """``(weight, nonneg)`` as `infodisent.ops.infodisent_head` takes them; relu is fused."""
        if self.nonneg == "relu":
            return self.weight, "relu"
        return self.effective_weight(), "none"

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp the parameter to >= 0 where `nonneg` is "projection"; otherwise do nothing."""
        if self.nonneg == "projection":
            self.weight.clamp_(min=0)

    def forward(self, pooled: Tensor) -> Tensor:
        """``pooled · W^T (+ bias)``: ``[..., C]`` to ``[..., K]``."""
        return nn.functional.linear(pooled, self.effective_weight(), self.bias)

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, nonneg={self.nonneg!r}"
        )


class InfoDisentHead(nn.Module):
    """Feature map to logits: rotate, keep the extreme pixels, classify with nonnegative weights.

    Follows timm's ``ClassifierHead``: ``forward(x, pre_logits=False)``, ``reset(num_classes)``,
    attributes ``in_features``, ``num_features``, ``input_fmt``, ``fc``, ``drop_rate``.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the pooled features as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        bias: add a bias to the logits.
        nonneg: how the weights stay nonnegative, see `NonNegativeLinear`.
        rotate: learn a rotation; without it U is the identity and channels are used as they are.
        parametrization: of the rotation, "exp" or "lie", see `Rotation`.
        rotation_precision: of the rotation's exponential, "full" or "half", see
            `infodisent.ops.rotation`.
        drop_rate: dropout on the pooled features in training.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        bias: bool = False,
        nonneg: str = "projection",
        rotate: bool = True,
        parametrization: str = "exp",
        rotation_precision: str = "full",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_positive("InfoDisentHead", "in_features", in_features)
        check_input_fmt("InfoDisentHead", input_fmt, num_prefix_tokens)
        _check_choice("InfoDisentHead", "nonneg", nonneg, NONNEG)
        if not 0 <= drop_rate < 1:
            raise ValueError(f"InfoDisentHead: drop_rate is {drop_rate}, must be in [0, 1)")
        self.in_features = self.num_features = in_features
        self.input_fmt, self.num_prefix_tokens = input_fmt, num_prefix_tokens
        self.bias, self.nonneg, self.drop_rate = bias, nonneg, drop_rate
        _check_choice("InfoDisentHead", "parametrization", parametrization, PARAMETRIZATIONS)
        _check_choice("InfoDisentHead", "rotation_precision", rotation_precision, PRECISIONS)
        self.rotation = (
            Rotation(
                in_features,
                parametrization=parametrization,
                precision=rotation_precision,
                device=device,
                dtype=dtype,
            )
            if rotate
            else None
        )
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module
        self._build_classifier(num_classes, device, dtype)

    def _build_classifier(
        self,
        num_classes: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"InfoDisentHead: num_classes is {num_classes!r}, must be an int >= 0")
        self.num_classes = num_classes
        self.fc = (
            NonNegativeLinear(
                self.in_features,
                num_classes,
                self.bias,
                nonneg=self.nonneg,
                device=device,
                dtype=dtype,
            )
            if num_classes
            else nn.Identity()
        )

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the classifier by a fresh one; the rotation stays.

        Raises:
            ValueError: `pool_type` is given: the sparse pool is what this head is.
        """
        if pool_type is not None:
            raise ValueError(
                f"InfoDisentHead.reset: pool_type is {pool_type!r}, but this head has one pool only"
            )
        like = self.rotation.A if self.rotation is not None else getattr(self.fc, "weight", None)
        self._build_classifier(
            num_classes,
            None if like is None else like.device,
            None if like is None else like.dtype,
        )
        self.fc.train(self.training)

    def pool(self, x: Tensor) -> SparsePool:
        """Rotate and pool: a map of layout `input_fmt` to a `SparsePool` of ``[B, C]`` tensors."""
        if self.rotation is None:
            return ops.mx_pool(
                x, input_fmt=self.input_fmt, num_prefix_tokens=self.num_prefix_tokens
            )
        return ops.rotate_pool(
            x,
            self.rotation(),
            input_fmt=self.input_fmt,
            num_prefix_tokens=self.num_prefix_tokens,
        )

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``[B, K]``, or the pooled features ``[B, C]`` if `pre_logits`."""
        dropping = self.training and self.drop_rate > 0
        if pre_logits or dropping or self.rotation is None or self.num_classes == 0:
            pooled: Tensor = self.drop(self.pool(x).pooled)
            if pre_logits or self.num_classes == 0:
                return pooled
            fc = self.fc
            assert isinstance(fc, NonNegativeLinear)
            logits: Tensor = fc(pooled.to(fc.weight.dtype))
            return logits
        assert isinstance(self.fc, NonNegativeLinear)
        weight, nonneg = self.fc.operator_weight()
        result = ops.infodisent_head(
            x,
            self.rotation(),
            weight,
            self.fc.bias,
            nonneg=nonneg,
            input_fmt=self.input_fmt,
            num_prefix_tokens=self.num_prefix_tokens,
        )
        assert isinstance(result, Tensor)
        return result

    def options(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this head's structure."""
        found: dict[str, Any] = {
            "bias": self.bias,
            "nonneg": self.nonneg,
            "rotate": self.rotation is not None,
            "drop_rate": self.drop_rate,
        }
        if self.rotation is not None:
            found["parametrization"] = self.rotation.parametrization
            found["rotation_precision"] = self.rotation.precision
        return found


def _check_choice(owner: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {name} is {value!r}, allowed are {', '.join(allowed)}")


def _check_positive(owner: str, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}, must be an int >= 1")
