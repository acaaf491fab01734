"""One judge of results, for tests, the self-check, the GPU scripts and the benchmarks.

Values are compared with float64, and where it is asked for with the error that plain PyTorch makes
at the same dtype. Places are judged by gathering the values that are there, so that a near tie
cannot fail; where results are exact, ties must go to the lowest pixel. What is wrong raises
`WrongResultError`, which says what and by how much.

    x, u, y = random_map(5, 49, 64, dtype=torch.bfloat16, seed=1)
    with poisoned_memory(), untouched_generators():
        extremes = kernel(x, u)
    check_extremes(extremes, y, relative_tolerance=2**-12)
    check_extremes(extremes, y, tolerance=eager_tolerance(x, u, rounding=2**-20))
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args
from unittest import mock

import torch
from torch import Tensor

from infodisent import reference
from infodisent.contract import Extremes, SparsePool

Kind = Literal["normal", "integers", "ties", "nan", "inf"]
Tolerance = float | Tensor
"""Absolute: a number, or a tensor that broadcasts with ``[B, C]``."""


class WrongResultError(AssertionError):
    """A kernel computed something else."""


class RandomMap(NamedTuple):
    """A problem and its answer before pooling.

    x is the map, ``[B, P, C]``; u the matrix that turns every pixel, ``[C, C]``, not orthogonal; y
    is ``x u^T`` of these rounded operands in float64, ``[B, P, C]``.
    """

    x: Tensor
    u: Tensor
    y: Tensor


class MapGradients(NamedTuple):
    """Gradients of a pool, in the order in which kernels return them."""

    dx: Tensor  # [B, P, C] float64
    du: Tensor  # [C, C] float64


def require(condition: Tensor | bool, message: str) -> None:
    """Raise `WrongResultError` with `message` unless `condition` holds."""
    if not bool(condition):
        raise WrongResultError(message)


def relative(actual: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth, in float64."""
    truth = truth.detach().double()
    difference = actual.detach().double() - truth
    return float(difference.norm() / truth.norm().clamp_min(1e-300))


def random_map(
    batch: int,
    pixels: int,
    channels: int,
    *,
    dtype: torch.dtype = torch.float32,
    u_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    kind: Kind = "normal",
    prefix: int = 0,
) -> RandomMap:
    """A random map, a random matrix, and their product in float64.

    Drawn on the CPU by a generator of their own: the same on every device, and the caller's
    generators and default device do not matter.

    Args:
        batch, pixels, channels: B, P and C.
        dtype, u_dtype: of x and of u; both of `dtype` if the second is None.
        device: where x, u and y are.
        seed: of the generator.
        kind: "normal" entries; "integers" so small that every order of summation is exact, with
            ties and, in places, nothing; "ties", the same with one factor a channel, so that
            nearly all pixels tie and some channels have nothing on one side or both; "nan" and
            "inf", normal with three such entries of x of either sign.
        prefix: rows full of NaN before the pixels of every image, of which x is then a view: no
            result may show them.
    """
    g = torch.Generator("cpu").manual_seed(seed)
    draw = functools.partial(torch.randint, generator=g, device="cpu")
    x = torch.randn(batch, pixels, channels, generator=g, device="cpu")
    u = torch.randn(channels, channels, generator=g, device="cpu") / channels**0.5
    if kind == "integers":
        x, u = x.round().clamp(-2, 2), draw(-1, 2, u.shape).float()
    elif kind == "ties":
        x = x.round().clamp(-1, 1)
        sides = draw(0, 4, (channels,))  # both, none, positive only, negative only
        x = torch.where(sides == 1, 0.0, torch.where(sides == 2, x.abs(), x))
        x = torch.where(sides == 3, -x.abs(), x)
        u = torch.eye(channels, device="cpu") * (1 - 2 * draw(0, 2, (channels,)))
    elif kind in ("nan", "inf"):
        for _ in range(3):
            sign = 1 - 2 * int(draw(0, 2, ()))
            x.view(-1)[int(draw(0, x.numel(), ()))] = sign * float(kind)
    elif kind != "normal":
        raise ValueError(f"random_map: kind is {kind!r}, allowed: {', '.join(get_args(Kind))}")
    if prefix:
        rows = torch.full((batch, prefix, channels), float("nan"), device="cpu")
        x = torch.cat([rows, x], 1)
    x, u = x.to(device, dtype)[:, prefix:], u.to(device, u_dtype or dtype)
    return RandomMap(x, u, x.double() @ u.double().mT)


def eager_tolerance(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    *,
    rounding: float,
) -> tuple[float, float]:
    """What a pool may be off by, for `check_extremes`: pos and neg.

    The largest error that the eager formula makes at the dtypes of x and u, where that is finite,
    and `rounding` in parts of the largest magnitude of Y.
    """
    eager = reference.rotate_pool(x, u, input_fmt="NLC")
    truth = reference.rotate_pool(x.double(), u.double(), input_fmt="NLC")
    y = x.double() @ u.double().mT
    allowed = rounding * _largest(y)
    pos, neg = (_largest(a - b) for a, b in zip(eager[1:3], truth[1:3], strict=True))
    return allowed + pos, allowed + neg


def check_extremes(
    result: Extremes | SparsePool | Sequence[Tensor],
    y: Tensor,  # [B, P, C] float64
    *,
    tolerance: Tolerance | tuple[Tolerance, Tolerance] = 0.0,
    relative_tolerance: float = 0.0,
    exact: bool = False,
    least: float = 0.0,
    signed_zeros: bool = False,
    dtype: torch.dtype = torch.float32,
    what: str = "pool",
) -> None:
    """Raise unless a pool of a map is right: values, places, ties, NaN, Inf, signs, types.

    Args:
        result: pos, neg, pos_index, neg_index, each ``[B, C]``; or with ``pooled`` before them,
            which must then be their difference to the last bit.
        y: the map that was pooled. A NaN in a channel must be both its values, at its lowest
            pixel; an infinity that is the maximum must be at its lowest pixel.
        tolerance: largest absolute error of a value, or a pair of these, for pos and for neg. What
            is at a place may be below the maximum by twice that, which is what choosing by values
            of that error costs.
        relative_tolerance: the same in parts of the largest value of the side; both are added.
        exact: whether values must be exact and ties at the lowest pixel, as for whole numbers.
        least: smaller values count as nothing (low parts of a split float32 operand are never 0).
        signed_zeros: whether a value may be -0, as that of the formula may, ``ReLU(-0)``.
        dtype: that the values must have.
        what: begins the message.

    Raises:
        WrongResultError: the first thing that is wrong.
    """
    tensors = [t.detach() for t in result]
    require(len(tensors) in (4, 5), f"{what}: {len(tensors)} tensors, not 4 or 5")
    extremes = Extremes(*tensors[-4:])
    size = (y.shape[0], y.shape[2])
    for name, tensor in zip(Extremes._fields, extremes, strict=True):
        wanted = torch.int32 if name.endswith("index") else dtype
        require(tensor.dtype == wanted, f"{what}: {name} is {tensor.dtype}, not {wanted}")
        require(tensor.shape == size, f"{what}: {name} is {tuple(tensor.shape)}, not {size}")
    require(not any(t.requires_grad for t in list(result)[-2:]), f"{what}: places need gradients")
    if len(tensors) == 5:
        difference = extremes.pos - extremes.neg
        same = (tensors[0] == difference) | (tensors[0].isnan() & difference.isnan())
        require(same.all(), f"{what}: pooled is not pos - neg")
    if signed_zeros:
        extremes = Extremes(extremes.pos + 0.0, extremes.neg + 0.0, *extremes[2:])  # -0 + 0 is 0
    pair = tolerance if isinstance(tolerance, tuple) else (tolerance, tolerance)
    pos, neg, pos_index, neg_index = (t.to(y.device) for t in extremes)
    options = relative_tolerance, exact, least
    if y.numel():
        _check_side(pos, pos_index.long(), y, pair[0], *options, f"{what}: pos")
        _check_side(neg, neg_index.long(), -y, pair[1], *options, f"{what}: neg")


def _check_side(
    value: Tensor,  # [B, C]
    index: Tensor,  # [B, C] int64
    side: Tensor,  # [B, P, C] float64, of which the maximum was asked for
    tolerance: Tolerance,
    relative_tolerance: float,
    exact: bool,
    least: float,
    what: str,
) -> None:
    pixels = side.shape[1]
    number = torch.arange(pixels, device=side.device)[None, :, None]
    nan = side.isnan().any(1)
    best = side.amax(1).clamp_min(0)  # NaN where there is one
    infinite = best.isinf()

    def first(chosen: Tensor) -> Tensor:  # [B, P, C] bool to [B, C], the lowest pixel
        return torch.where(chosen, number, pixels).amin(1)

    require(torch.equal(value.isnan(), nan), f"{what} values: NaN in other places")
    require(not torch.signbit(value[~nan]).any(), f"{what} values: below zero, or negative zero")
    require(torch.equal(value.isinf(), infinite), f"{what} values: Inf in other places")
    inside = (index >= -1) & (index < pixels)
    require(inside.all(), f"{what} places: outside of {pixels} pixels")
    require(
        torch.equal((index >= 0)[~nan], (value > 0)[~nan]),
        f"{what} places: one where the value is 0, or none where it is not",
    )
    require(torch.equal(index[nan], first(side.isnan())[nan]), f"{what} places: of a NaN")
    require(
        torch.equal(index[infinite], first(side.isinf() & (side > 0))[infinite]),
        f"{what} places: of an infinity",
    )
    if least:
        value = torch.where(value < least, 0, value)
        index = torch.where(value > 0, index, torch.where(nan, index, -1))
    finite = ~nan & ~infinite
    largest = best[finite].amax() if finite.any() else best.new_zeros(())
    slack = torch.as_tensor(tolerance, dtype=torch.float64, device=side.device)
    slack = (slack + relative_tolerance * largest).expand_as(best)
    error = (value.double() - best).abs()
    over = torch.where(finite, error - slack, -1)
    worst = int(over.argmax())
    amount, bound = (t.flatten()[worst].item() for t in (error, slack))
    message = f"{what} values: off by {amount:.3g}, allowed {bound:.3g}"
    require((error <= slack)[finite].all(), message)
    there = side.gather(1, index.clamp_min(0)[:, None])[:, 0]
    less = torch.where(finite & (index >= 0), best - there, 0)
    worst = int((less - 2 * slack).argmax())
    amount, bound = (t.flatten()[worst].item() for t in (less, 2 * slack))
    message = f"{what} places: {amount:.3g} below the maximum, allowed {bound:.3g}"
    require((less <= 2 * slack).all(), message)
    if exact:
        require(torch.equal(value.double()[~nan], best[~nan]), f"{what} values: not exact")
        lowest = torch.where(best > 0, first(side == best[:, None]), -1)
        require(torch.equal(index[~nan], lowest[~nan]), f"{what} places: a tie at a higher pixel")


def check_close(result: Tensor, truth: Tensor, tolerance: float, what: str) -> float:
    """The error of `result` as `relative` has it.

    Raises:
        WrongResultError: `result` has another shape, or its error is above `tolerance` or NaN.
    """
    _check_shape(result, truth, what)
    error = relative(result, truth)
    require(error <= tolerance, f"{what} is off by {error:.1e}, allowed {tolerance:.1e}")
    return error


def compare_with_eager(
    result: Tensor,
    eager: Tensor,
    truth: Tensor,
    *,
    rounding: float,
    what: str,
    by: Literal["largest", "norm"] = "largest",
) -> float:
    """The error of `result`; raises if eager's at the same dtype is smaller by more than rounding.

    Args:
        result, eager, truth: of the kernel, of plain PyTorch, and finite values in float64.
        rounding: in parts of the largest magnitude of the truth, or of its norm.
        what: begins the message.
        by: whether errors are the largest difference, or the norm of it, relative to the truth.

    Raises:
        WrongResultError: of another shape, or further off than allowed.
    """
    _check_shape(result, truth, what)
    _check_shape(eager, truth, f"{what}, eager")
    result, eager, truth = (t.detach().double() for t in (result, eager, truth))
    if by == "norm":
        error, other, scale = relative(result, truth), relative(eager, truth), 1.0
    elif truth.numel():
        error, other = ((t - truth).abs().amax().item() for t in (result, eager))
        scale = truth.abs().amax().item()
    else:
        return 0.0
    allowed = other + rounding * scale
    require(
        error <= allowed, f"{what} is off by {error:.1e}, eager {other:.1e}, allowed {allowed:.1e}"
    )
    return error


def gradient_truth(
    grad_pos: Tensor,  # [B, C]
    grad_neg: Tensor,  # [B, C]
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    pos_index: Tensor,  # [B, C] int32
    neg_index: Tensor,  # [B, C] int32
) -> MapGradients:
    """dX and dU in float64 from the places that a kernel chose, each of 2·B·C winners' rows.

    ``dY`` is `grad_pos` at `pos_index` and `grad_neg` at `neg_index` (the gradient of ``pooled``,
    or minus that of ``neg``), nothing where a place is -1. ``dX = dY U``; ``dU`` is the sum of
    ``dY_b^T X_b``. No row but the winners' is read.
    """
    x, u = x.detach().double(), u.detach().double()
    dx, du = torch.zeros_like(x), torch.zeros_like(u)
    for grad, index in ((grad_pos, pos_index), (grad_neg, neg_index)):
        has = index >= 0  # a gradient elsewhere may be anything, also NaN
        values = torch.where(has, grad.detach().double(), 0)
        rows = index.clamp_min(0).long()
        for b in range(x.shape[0]):
            value, chosen = values[b, :, None], has[b, :, None]
            du += torch.where(chosen, value * x[b, rows[b]], 0)
            dx[b].index_add_(0, rows[b], torch.where(chosen, value * u, 0))
    return MapGradients(dx, du)


def _largest(t: Tensor) -> float:
    """Largest finite magnitude, 0 if there is none."""
    finite = t[t.isfinite()]
    return finite.abs().amax().item() if finite.numel() else 0.0


def _check_shape(result: Tensor, truth: Tensor, what: str) -> None:
    sizes = tuple(result.shape), tuple(truth.shape)
    require(sizes[0] == sizes[1], f"{what} is {sizes[0]}, not {sizes[1]}")


def _poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(allocate)
    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        out = allocate(*arguments, **options)
        if out.is_meta or out.dtype == torch.bool:
            return out
        with torch.no_grad():
            if out.is_floating_point() or out.is_complex():
                out.fill_(float("nan"))
            else:
                limits = torch.iinfo(out.dtype)
                out.fill_(limits.min or limits.max)
        return out

    return poisoned


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that Python code allocates without a value holds NaN or the smallest integer.

    So an output that was left unwritten shows. Replaces ``torch.empty``, ``empty_like``,
    ``empty_strided``, ``Tensor.new_empty`` and ``new_empty_strided``; what C++ code allocates is
    as ever. Unsigned integers get their largest value, booleans and meta tensors none.
    """
    with contextlib.ExitStack() as stack:
        for owner, names in (
            (torch, ("empty", "empty_like", "empty_strided")),
            (Tensor, ("new_empty", "new_empty_strided")),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, _poison(getattr(owner, name))))
        yield


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Raise if the block draws from the caller's generators: torch's on every device, Python's.

    Raises:
        WrongResultError: the state of one of them is another afterwards.
    """
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()

    def states() -> dict[str, Any]:
        devices = torch.cuda.get_rng_state_all() if cuda else []
        return {
            "torch": torch.get_rng_state().tolist(),
            "torch.cuda": [state.tolist() for state in devices],
            "random": random.getstate(),
        }

    before = states()
    yield
    for name, state in states().items():
        require(state == before[name], f"the generator of {name} was drawn from, or seeded")
