"""`NonNegativeLinear`: the classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infodisent.checks import check_choice, check_positive

NONNEG = ("relu", "softplus", "abs", "projection")


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
        check_positive("NonNegativeLinear", "in_features", in_features)
        check_positive("NonNegativeLinear", "out_features", out_features)
        check_choice("NonNegativeLinear", "nonneg", nonneg, NONNEG)
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
