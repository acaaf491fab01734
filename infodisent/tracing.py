"""Whether torch is looking: modes, transforms and tracers that see every call."""

from __future__ import annotations

import torch


def nothing_watches() -> bool:
    """Whether no mode, transform or tracer of torch sees what is called."""
    try:
        return (
            torch._C._len_torch_dispatch_stack() == 0
            and torch._C._functorch.peek_interpreter_stack() is None
            and torch._C._get_tracing_state() is None
        )
    except AttributeError:  # another torch: take the long way
        return False


def transforming() -> bool:
    """Whether one of `torch.func`'s transforms (grad, vmap, jacrev …) sees what is called."""
    try:
        return torch._C._functorch.peek_interpreter_stack() is not None
    except AttributeError:  # another torch
        return False


def in_batches(*gradients: torch.Tensor) -> bool:
    """Whether gradients are several at once, by ``is_grads_batched``: no mode or transform."""
    try:
        batched = torch._C._functorch.is_legacy_batchedtensor, torch._C._functorch.is_batchedtensor
    except AttributeError:  # another torch
        return False
    return any(asked(g) for asked in batched for g in gradients)
