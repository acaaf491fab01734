"""`MxPool`: the pool as a module."""

from __future__ import annotations

from torch import Tensor, nn

from infodisent import ops
from infodisent.layout import check_input_fmt
from infodisent.ops import SparsePool


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
