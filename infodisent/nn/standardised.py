"""`StandardisedLinear`: a linear layer that learns on standardised features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class StandardisedLinear(nn.Module):
    """``weight ((x - shift) / scale) + bias``, which is as linear in x as any other layer.

    Starts at zero, with shift 0 and scale 1.

    Args:
        in_features, out_features: C and K.
        device, dtype: of parameters and buffers.

    Attributes:
        weight, bias: parameters ``[K, C]`` and ``[K]``, of standardised features.
        shift, scale: buffers ``[C]``.
        given: bool buffer, whether `give` set the weights.
    """

    shift: Tensor
    scale: Tensor
    given: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, **place))
        self.bias = nn.Parameter(torch.zeros(out_features, **place))
        self.register_buffer("shift", torch.zeros(in_features, **place))
        self.register_buffer("scale", torch.ones(in_features, **place))
        self.register_buffer("given", torch.zeros((), dtype=torch.bool, device=device))

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight ``[K, C]`` and bias ``[K]`` of the features as they come, differentiable."""
        weight = self.weight / self.scale
        return weight, self.bias - weight @ self.shift

    def forward(
        self,
        x: Tensor,  # [n, C]
    ) -> Tensor:
        """``[n, K]`` in the weights' dtype."""
        weight, bias = self.effective()
        return nn.functional.linear(x.to(weight.dtype), weight, bias)

    @torch.no_grad()
    def give(
        self,
        weight: Tensor,  # [K, C]
        bias: Tensor | None,  # [K]
    ) -> None:
        """Weights of the features as they come, that are not to be trained.

        Raises:
            ValueError: another size.
        """
        if weight.shape != self.weight.shape or not (bias is None or bias.shape == self.bias.shape):
            given = "none" if bias is None else tuple(bias.shape)
            raise ValueError(
                f"StandardisedLinear: weight is {tuple(weight.shape)} and bias {given}, must be "
                f"{tuple(self.weight.shape)} and {tuple(self.bias.shape)}"
            )
        self.weight.copy_(weight)
        self.bias.zero_() if bias is None else self.bias.copy_(bias)
        self.shift.zero_()
        self.scale.fill_(1)
        self.given.fill_(True)

    @torch.no_grad()
    def standardise(
        self,
        parts: Iterable[Tensor],  # [n, C] each
    ) -> None:
        """Shift and scale: mean and deviation of the rows of all parts, at least two together."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for part in parts:
            rows = part.cpu().double()  # squares of rows far from 0 cancel
            count += len(rows)
            total, squares = total + rows.sum(0), squares + rows.square().sum(0)
        variance = (squares - total.square() / count).clamp_min(0) / max(1, count - 1)
        self.shift.copy_(total / count)
        self.scale.copy_(variance.sqrt() + 1e-6)
