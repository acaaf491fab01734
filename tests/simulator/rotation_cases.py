"""Problems of the simulator: the rotation, both ways, and one product of it in every mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from infodisent.kernels import rotation as rotations
from infodisent.kernels.tiles.blocks import serving
from torch import Tensor

from infodisent import testing
from infodisent.testing import check_close, require
from tests.simulator.triton import Case

ERROR_OF_ROTATION = {"tf32x3": 1e-5, "parts": 1e-5, "ieee": 1e-5, "bf16x3": 3e-4, "tf32": 5e-3}


def _rotation(products: str, size: int, sigma: float = 0.05, precision: str = "full") -> Case:
    def run(arch: int) -> Sequence[Tensor]:
        g = torch.Generator().manual_seed(3)
        a = torch.randn(size, size, generator=g) * sigma
        grad = torch.randn(size, size, generator=g)
        u, kept, numbers = rotations.rotation(a, precision, products)
        d_a = rotations.rotation_backward(grad, a, kept, numbers, precision, products)
        leaf = a.double().requires_grad_()
        truth = torch.matrix_exp(leaf - leaf.mT)
        truth.backward(grad.double())
        check_close(u, truth, ERROR_OF_ROTATION[products], "U")
        check_close(d_a, leaf.grad, 10 * ERROR_OF_ROTATION[products], "dA")
        squarings = int(numbers[rotations.SQUARINGS])
        require((squarings > 0) == (sigma > 0.5), f"{squarings} squarings")
        return u, d_a

    return run


def _product(products: str, size: int, **options: bool) -> Case:
    """One product of the rotation, with the tile that large matrices have."""

    def run(arch: int) -> Sequence[Tensor]:
        g = torch.Generator().manual_seed(8)
        a, b, add = torch.randn(3, size, size, generator=g)
        if options.get("symmetric"):
            a = b = a + a.mT
        out, numbers = torch.empty(size, size), torch.ones(rotations.WIDTH)
        blocks = serving(rotations.tiles.BLOCKS, 4096, products, arch)
        block = max(blocks, key=lambda block: block.block_m)
        rotations.product(
            a, b, out, numbers, products, add=add, beta=2.0, chosen=block, **options
        )  # fmt: skip
        left = a.double().mT if options.get("trans_a") else a.double()
        right = b.double().mT if options.get("trans_b") else b.double()
        truth = left @ right + 2 * add.double()
        if options.get("both"):
            truth = truth + right @ left
        if options.get("symmetric"):  # the lower half of what is added counts for both
            truth = truth.tril() + truth.tril(-1).mT
        require(
            testing.relative(out, truth)
            <= {"tf32x3": 2e-6, "parts": 2e-6, "bf16x3": 5e-5, "tf32": 2e-3}[products],
            f"product off by {testing.relative(out, truth):.1e}",
        )
        return (out,)

    return run


CASES: dict[str, Case] = {
    "product tf32x3": _product("tf32x3", 144),
    "product tf32x3 transposed": _product("tf32x3", 144, trans_a=True, trans_b=True),
    "product tf32x3 symmetric": _product("tf32x3", 144, symmetric=True),
    "product tf32x3 both": _product("tf32x3", 144, trans_b=True, both=True),
    "product parts": _product("parts", 144),
    "product parts transposed": _product("parts", 144, trans_a=True, trans_b=True),
    "product parts symmetric": _product("parts", 144, symmetric=True),
    "product parts both": _product("parts", 144, trans_b=True, both=True),
    "product bf16x3": _product("bf16x3", 144, trans_b=True),
    "product tf32": _product("tf32", 144, trans_a=True),
    "rotation tf32x3 64": _rotation("tf32x3", 64),
    "rotation tf32x3 ragged, 50": _rotation("tf32x3", 50),
    "rotation tf32x3 squarings": _rotation("tf32x3", 64, sigma=1.0),
    "rotation bf16x3": _rotation("bf16x3", 64, precision="half"),
    "rotation parts ragged, 50": _rotation("parts", 50),
    "rotation parts squarings": _rotation("parts", 64, sigma=1.0),
    "rotation ieee": _rotation("ieee", 64),
    "rotation tf32": _rotation("tf32", 64),
}
