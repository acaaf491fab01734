"""Long sweep over random shapes, layouts and dtypes; every seed is 200 comparisons.

pytest -m slow tests/ops/test_sweep.py
"""

from __future__ import annotations

import pytest
import torch

from infodisent import ops, reference
from infodisent.backends.native import rotate_pool as native_rotate_pool
from infodisent.backends.sparse import winners
from infodisent.testing import relative
from tests.conftest import LAYOUTS


@pytest.mark.slow
@pytest.mark.parametrize("seed", [pytest.param(s, id=f"seed{s}") for s in range(50)])
@pytest.mark.usefixtures("backend")
def test_sweep(seed, monkeypatch):
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=g))

    compared = 0
    for _ in range(200):
        shape = (draw(0, 7), draw(1, 130), draw(1, 15), draw(1, 15))
        dtype = (torch.float32, torch.float16, torch.bfloat16)[draw(0, 3)]
        fmt, prefix, build = list(LAYOUTS.values())[draw(0, len(LAYOUTS))]
        chunk = (1, 50_000, 8 << 20)[draw(0, 3)]
        monkeypatch.setattr(winners, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(native_rotate_pool, "CHUNK_ROWS", chunk // 100)
        x = torch.randn(shape, generator=g).to(dtype)
        u = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=g))[0].to(dtype)
        w = torch.randn(draw(1, 20), shape[1], generator=g).to(dtype)
        xs = build(x).detach().requires_grad_()
        us, ws = u.clone().requires_grad_(), w.clone().requires_grad_()
        x64, u64, w64 = (t.double().requires_grad_() for t in (x, u, w))
        layout = {"input_fmt": fmt, "num_prefix_tokens": prefix}
        logits, pool = ops.infodisent_head(xs, us, ws, return_pool=True, **layout)
        truth, wanted = reference.infodisent_head(x64, u64, w64, return_pool=True)
        cotangent = torch.randn(logits.shape, generator=g).to(dtype)
        grads = torch.autograd.grad(logits, (us, ws), cotangent)
        plain = torch.autograd.grad(truth, (u64, w64), cotangent.double())
        eps = torch.finfo(dtype).eps
        if not shape[0]:
            assert grads[0].abs().max() == grads[1].abs().max() == 0
            continue
        for name in ("pos", "neg"):
            assert relative(getattr(pool, name), getattr(wanted, name)) < 1e-5
        # pos and neg may cancel, and so may the terms: the error is judged by their size
        terms = (wanted.pos + wanted.neg) @ w64.relu().T
        assert torch.all((logits - truth).abs() <= 2 * eps * truth.abs() + 2e-6 * terms)
        assert relative(grads[1], plain[1]) < max(1e-5, eps)
        # two pixels that tie in float32 need not tie in float64, and then dU legitimately differs
        if all(torch.equal(a, b) for a, b in zip(pool[3:], wanted[3:], strict=True)):
            assert relative(grads[0], plain[0]) < max(1e-5, eps)
            compared += 1
    assert compared > 150
