"""How an operator enters torch: one library, one registration recipe, shared small pieces.

The recipe is ``torch.library.define`` + ``impl`` rather than ``custom_op``: the same public
machinery (opcheck, compile, export, autograd) with less Python per call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from infodisent.backends.selection import FORMULAS, get_backend, say_what_a_file_needs
from infodisent.tracing import nothing_watches, transforming

NAMESPACE = "infodisent"


def register(
    stem: str,
    schema: str,
    impl: Callable[..., Any],
    fake: Callable[..., Any],
) -> Any:
    """Define ``infodisent::<stem>`` and return the callable overload."""
    name = f"{NAMESPACE}::{stem}"
    torch.library.define(name, schema)
    torch.library.impl(name, "CompositeExplicitAutograd")(without_autocast(impl))
    torch.library.register_fake(name)(_telling(fake))
    return getattr(getattr(torch.ops, NAMESPACE), stem).default


def _telling(fake: Callable[..., Any]) -> Callable[..., Any]:
    """The fake of an operator, which an export calls and no run does: the place to say so."""

    @functools.wraps(fake)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting():
            say_what_a_file_needs()
        return fake(*args, **kwargs)

    return wrapped


def register_gradient(
    stem: str, backward: Callable[..., Any], setup_context: Callable[..., Any]
) -> None:
    """Attach a gradient that can be taken once; a second derivative raises RuntimeError."""
    torch.library.register_autograd(
        f"{NAMESPACE}::{stem}", once(backward), setup_context=setup_context
    )


def once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """A backward whose results raise when they are differentiated.

    torch's `once_differentiable` lets pass what depends on saved inputs only: the penalty of a
    gradient that is the same for all upstream gradients would silently count for nothing.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        again = torch.is_grad_enabled()  # create_graph=True
        with torch.no_grad():
            outputs = backward(ctx, *grads)
        if not again:
            return outputs
        message = f"{NAMESPACE}: trying to differentiate twice; infodisent.reference can"
        raising = torch._C._functions.DelayedError(message.encode(), len(outputs))
        # detached, so that nothing of the operator is asked for before the message is shown
        given = [g.detach().requires_grad_() if isinstance(g, Tensor) else g for g in outputs]
        refusing: tuple[Any, ...] = raising(*given)
        return refusing

    return wrapped


# whether autocast is on for some device; in a torch without the question: ask about each
_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def direct(*tensors: Tensor | None) -> bool:
    """Whether an operator may be run without torch's dispatcher, longer than a small map takes.

    True where no gradient is asked for, nothing traces, transforms, records or casts the call, and
    every tensor is numbers in memory: no lazy sign or zeros, no shape without numbers.
    """
    if torch.compiler.is_compiling():
        return False
    grad = torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if type(t) not in _PLAIN or (grad and t.requires_grad):
            return False
        if t.is_neg() or t._is_zerotensor() or not (t.is_cpu or t.is_cuda):
            return False
    return nothing_watches() and not _any_autocast()


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError for an input of forward-mode differentiation of a kernel.

    torch would go on without the tangent, as if the derivative were zero. The plain formulas, which
    `torch.func` gets and the backend "reference" is, have one.
    """
    if forward_ad._current_level < 0 or transforming() or get_backend() == FORMULAS:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            f"{op}: forward-mode differentiation is not supported; use reverse mode, or "
            'infodisent.reference, which use_backend("reference") chooses'
        )


_PLAIN = (Tensor, torch.nn.Parameter)


def without_autocast(impl: Callable[..., Any]) -> Callable[..., Any]:
    """Inside an operator the dtypes are decided: autocast must not touch its products."""

    @functools.wraps(impl)
    def wrapped(*args: Any) -> Any:
        with no_autocast(next(a for a in args if isinstance(a, Tensor))):
            return impl(*args)

    return wrapped


def autocasting(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    # asking about a device without autocast, such as meta, is an error of its own
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Autocast off on the tensor's device; nothing where it is off already."""
    device = tensor.device.type
    if not autocasting(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def autocast(*tensors: Tensor) -> Sequence[Tensor]:
    """float32 tensors cast to the autocast dtype where autocast is on, as for a matrix product."""
    if not _any_autocast():
        return tensors
    device = tensors[0].device.type
    if not autocasting(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t.dtype == torch.float32 else t for t in tensors]
