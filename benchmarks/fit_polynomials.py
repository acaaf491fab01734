"""Fit the polynomials of `infodisent.polynomials.coefficients` from nothing.

    python benchmarks/fit_polynomials.py            # errors of the committed ones
    python benchmarks/fit_polynomials.py --fit      # about ten minutes: fit them again, print them

Least squares on Chebyshev nodes of ``(p(i y) - e^(i y)) / y``, by Levenberg and Marquardt's method
with a small penalty on the coefficients. Division by y makes the polynomial exact at 0 and its
gradient as accurate as its value. Every start is a shorter polynomial: the first has its
coefficients from Taylor's series, longer ones start as its square or with one more power, and
theta then grows step by step.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from infodisent.polynomials import plans as _plans

torch.set_default_dtype(torch.float64)

FULL = {"6 products": 0.5, "7.5 products": 1.9, "9 products": 3.0, "10.5 products": 6.4}
HALF = {"6 products": 1.6, "7.5 products": 4.2, "10.5 products": 12.8}
"""Name: theta."""


class Form:
    """Parameters <-> rows of one kind, in the order q, L_1, M_1, ..., last."""

    def __init__(self, has_q: bool, products: int) -> None:
        self.has_q, self.products = has_q, products
        width = 3 + has_q
        self.widths = [2] * has_q
        for k in range(products):
            self.widths += [width, width]
            width += k < products - 1
        self.widths.append(width)

    def rows(self, p: Tensor) -> list[Tensor]:
        return list(p.split(self.widths))

    def value(self, p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """p(i y) - 1 for y in units of theta, as real and imaginary part."""
        zero = torch.zeros_like(y)
        basis = [(zero, y), (-y * y, zero), (y**4, zero)]
        rows = self.rows(p)

        def total(row: Tensor, terms: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            return (
                sum((c * t[0] for c, t in zip(row, terms)), zero),
                sum((c * t[1] for c, t in zip(row, terms)), zero),
            )

        if self.has_q:
            q = total(rows.pop(0), basis[1:])
            basis.append((q[0] * q[0], zero))
        product = (zero, zero)
        for k in range(self.products):
            a, b = total(rows.pop(0), basis), total(rows.pop(0), basis)
            product = (a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0])
            if k < self.products - 1:
                basis.append(product)
        last = total(rows.pop(0), basis)
        return last[0] + product[0], last[1] + product[1]

    def rescaled(self, p: Tensor, ratio: float) -> Tensor:
        """The same polynomial with theta `ratio` times as large."""
        rows = self.rows(p.clone())
        for index, row in enumerate(rows):
            first = 2 if self.has_q and index == 0 else 1
            for j, degree in enumerate((1, 2, 4)[first - 1 :]):
                row[j] *= ratio**degree
        return torch.cat(rows)


def fit(form: Form, theta: float, p: Tensor, penalty: float, rounds: int = 250) -> Tensor:
    """Levenberg-Marquardt from `p`."""
    nodes = 48
    y = torch.sin((torch.arange(nodes) + 0.5) / nodes * math.pi / 2)
    weight = 1 / (y * theta)

    def residual(p: Tensor) -> Tensor:
        real, imaginary = form.value(p, y)
        return torch.cat(
            [
                weight * (real - torch.cos(theta * y) + 1),
                weight * (imaginary - torch.sin(theta * y)),
                0.3 * penalty * p,
            ]
        )

    jacobian = torch.func.jacfwd(residual)
    damping, r = 1e-4, residual(p)
    for index in range(rounds):
        j = jacobian(p)
        scale = j.norm(dim=0).clamp_min(1e-12)
        before = r.square().sum()
        while damping < 1e9:
            system = torch.cat([j / scale, math.sqrt(damping) * torch.eye(len(p))])
            right = torch.cat([-r, torch.zeros(len(p))])[:, None]
            step = torch.linalg.lstsq(system, right, driver="gelsd").solution[:, 0] / scale
            trial = residual(p + step)
            if trial.square().sum() < before:
                p, r, damping = p + step, trial, max(damping / 5, 1e-22)
                break
            damping *= 4
        else:
            return p
        if index > 50 and before - r.square().sum() < 1e-5 * before:
            return p
    return p


def errors(form: Form, theta: float, p: Tensor) -> tuple[float, float]:
    """Largest error, and largest error divided by y."""
    y = torch.linspace(1e-3, 1, 2000)
    real, imaginary = form.value(p, y)
    e = torch.hypot(real - torch.cos(theta * y) + 1, imaginary - torch.sin(theta * y))
    return e.max().item(), (e / (theta * y)).max().item()


def squared(form: Form, p: Tensor) -> tuple[Form, Tensor]:
    """W -> 2 W + W W: one product more, twice the theta."""
    rows = form.rows(p)
    w = torch.cat([rows[-1], torch.ones(1)])
    return Form(form.has_q, form.products + 1), torch.cat([*rows[:-1], w, w, 2 * w])


def with_q(p: Tensor) -> Tensor:
    """The one-product polynomial with a Q that it does not use yet."""
    rows = Form(False, 1).rows(p)
    q = torch.tensor([0.6, 0.06])
    return torch.cat([q, *(torch.cat([row, torch.full((1,), 0.01)]) for row in rows)])


def grow(form: Form, theta: float, p: Tensor, goal: float, penalties: tuple[float, ...]) -> Tensor:
    """Fit at theta, then at ever larger ones up to the goal."""
    while True:
        for penalty in penalties:
            p = fit(form, theta, p, penalty)
        print(f"    theta {theta:.2f}  error {errors(form, theta, p)[0]:.1e}", flush=True)
        if theta == goal:
            return p
        new = goal if goal < 1.15 * theta else 1.1 * theta
        p, theta = form.rescaled(p, new / theta), new


def restarted(
    form: Form, theta: float, p: Tensor, penalties: tuple[float, ...], tries: int = 12
) -> Tensor:
    """The best of several fits from perturbed starts: the valley has side valleys."""
    best = p
    for index in range(tries):
        q = p + 10 ** (-2.5 + 2 * index / tries) * torch.randn(len(p))
        for penalty in penalties:
            q = fit(form, theta, q, penalty)
        if errors(form, theta, q)[1] < errors(form, theta, best)[1]:
            best = q
            print(f"    restart {index}  error {errors(form, theta, q)[0]:.1e}", flush=True)
    return best


def from_nothing() -> None:
    """The whole chain."""
    torch.manual_seed(0)
    fine = (1e-6, 1e-8, 1e-9)
    one = Form(False, 1)
    # I + S + X^2 / 36 + (S + X / 6 + X^2 / 120)^2 / 2 is Taylor's series up to S^6, X = S^2
    root = torch.tensor([1, 1 / 6, 1 / 120]) / math.sqrt(2)
    p = torch.cat([root, root, torch.tensor([1, 0, 1 / 36])])
    fitted = {"6 products": (one, grow(one, 0.4, one.rescaled(p, 0.4), 0.5, fine))}
    base = fitted["6 products"][1]
    two, p = squared(one, base)
    p = grow(two, 1.0, p * (1 + 0.02 * torch.randn(len(p))), 3.0, fine)
    fitted["9 products"] = (two, restarted(two, 3.0, p, fine))
    wider = Form(True, 1)
    p = with_q(one.rescaled(base, 2.0))
    fitted["7.5 products"] = (wider, grow(wider, 1.0, p, 1.9, fine))
    four, p = squared(wider, fitted["7.5 products"][1])
    fitted["10.5 products"] = (four, grow(four, 3.8, p, 6.4, fine))
    for thetas, penalties, suffix in ((FULL, (), ""), (HALF, (1e-5, 1e-6, 1e-7), ", half")):
        for name, theta in thetas.items():
            form, p = fitted[name]
            if penalties:
                p = grow(form, FULL[name], p, theta, penalties)
            print(f"{name}{suffix}, theta {theta}: error {errors(form, theta, p)[0]:.2e}")
            for row in form.rows(p):
                print("   ", tuple(row.tolist()))


def committed() -> None:
    """Errors of what is in the package."""
    for precision in _plans.PRECISIONS:
        for plan in _plans.plans(torch.float32, precision):
            form = Form(plan.q is not None, len(plan.products))
            rows = [plan.q[1:]] if plan.q else []
            rows += [row for pair in plan.products for row in pair] + [plan.last]
            p = torch.tensor([value for row in rows for value in row])
            error, relative = errors(form, plan.theta, p)
            print(
                f"{plan.name:22} theta {plan.theta:5.1f}  error {error:.2e}, by y {relative:.2e}, "
                f"products {plan.cost[0]:g} + {plan.cost[1]:g}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit again and print coefficients")
    from_nothing() if parser.parse_args().fit else committed()
