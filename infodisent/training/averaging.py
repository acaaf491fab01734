"""The exponential moving average of the weights that train, by torch's own update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from infodisent.methods import Head
from infodisent.methods.rotations import moved_rotations
from infodisent.training.state import SavedState


class Average:
    """Averaged weights of one stage, beside those that train.

    Of a rotation under "lie", whose parameter returns to zero after every step, the base is
    averaged, and brought back to a rotation.

    Args:
        head: trains.
        trained: parameters that train in the stage, the backbone's too.
        decay: see `FitConfig.ema`.
        steps: of the stage that are done.
        saved: where an interrupted stage goes on.

    Raises:
        ValueError: `saved` has other averages.
    """

    def __init__(
        self,
        head: Head,
        trained: Sequence[nn.Parameter],
        decay: float,
        steps: int = 0,
        saved: SavedState | None = None,
    ) -> None:
        self._head, self._decay, self._steps = head, decay, steps
        self._bases = moved_rotations(head, trained)
        self._live: list[Tensor] = [*trained, *(module.base for module in self._bases)]
        self._values = [tensor.detach().clone() for tensor in self._live]
        if saved is not None:
            saved.restore_average(self._values)

    @property
    def values(self) -> list[Tensor]:
        """The averages, in the order of the parameters."""
        return self._values

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        if self._values:
            get_ema_multi_avg_fn(decay)(self._values, self._live, None)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def install(self) -> None:
        """The averages become the weights; they meet the head's constraints."""
        for tensor, value in zip(self._live, self._values, strict=True):
            tensor.copy_(value)
        for rotation in self._bases:
            mode = rotation.training
            rotation.base.copy_(rotation.eval()())
            rotation.train(mode)
        self._head.after_step()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The averages are the weights in the block, and those that train again behind it."""
        own = [*self._head.state_dict().values(), *self._live]
        kept = [tensor.detach().clone() for tensor in own]
        self.install()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(own, kept, strict=True):
                    tensor.copy_(value)
