"""How a product is computed: the names, which operator takes which, and what they cost.

All of them add up in float32, but a matrix unit rounds toward zero: see `RUN`. A float32 number on
tensor cores is the sum of parts of a shorter format, ``v = high + low``, and a product is the sum
of products of parts.

``half``
    Both operands in the half dtype (float16, bfloat16) of the first, to which the other is rounded:
    about 2^-12 or 2^-9 a term.
``split``, ``split3``
    A half operand with a wider one that is the sum of two or three numbers of that dtype, each with
    its own product: 16 or 24 bits (bfloat16), 22 bits or all (float16).
``tf32x3``
    Three products of TF32 parts, about float32's accuracy: 2^-21 of each term.
``bf16x3``
    The same of bfloat16 parts, 2^-15 to 2^-16. In `rotate_pool` and `rotate_pool_backward`
    experimental: reached by tests and benchmarks alone.
``ieee``
    float32, no tensor cores. Experimental in every operator, likewise.
``parts``
    As ``tf32x3``, of parts that launches before have written; in `rotation` alone. Experimental.
``tf32``
    One product of TF32 numbers, about 2^-11. Experimental in every operator, likewise.

What is experimental computes what it says and is tested in the interpreter; what is missing is a
measurement on a GPU that would make it the default of a case, or show that it has none.
"""

from __future__ import annotations

from collections.abc import Collection

ROTATE_POOL = ("half", "split", "tf32x3", "bf16x3", "ieee", "tf32")
"""Products of `rotate_pool` and `infodisent_head`: of the map x with u. ``tf32x3`` and ``bf16x3``
need memory for the parts of x, twice and once its size in float32."""
SIMILARITY_POOL = ("half", "split", "tf32x3", "ieee")
"""Products of the search of `similarity_pool`, and of its "dot"."""
ROTATE_POOL_PARTS = {
    "half": (1, 1),
    "split": (1, 2),
    "tf32x3": (2, 2),
    "bf16x3": (2, 2),
    "ieee": (1, 1),
    "tf32": (1, 1),
}
"""Parts of x and of u."""
GRADIENT_OF_HALF = ("half", "split", "split3")
"""Products of `rotate_pool_backward`: of dY, which is split, with a half operand."""
GRADIENT_OF_FLOAT = ("tf32x3", "bf16x3", "ieee")
"""The same with a float32 operand."""
ROTATION = ("tf32x3", "bf16x3", "ieee", "tf32", "parts")
"""Products of `rotation`, of float32 matrices; ``bf16x3`` is for its ``precision="half"``."""


RUN = 256
"""Channels whose products `rotate_pool` leaves to the matrix unit, where float32 is asked for.

It rounds every sum of 8 (TF32) or 16 products toward zero, so that the errors do not cancel: over
2048 channels they would be four times those of float32 rounded to nearest. After this many
channels the sum is added to another in plain float32, which leaves less than that
(tests/kernels/test_accumulation.py). `rotation` and `rotate_pool_backward` do it after every step,
``parts`` after a quarter of the channels.
"""


def run(products: str, block_k: int) -> int:
    """Steps of `rotate_pool` between two such additions; 0: the matrix unit adds all up."""
    return max(1, RUN // block_k) if products in ("tf32x3", "bf16x3") else 0


def terms(products: str) -> int:
    """Products of parts that `rotate_pool` adds up: all but low by low."""
    return sum(ROTATE_POOL_PARTS[products]) - 1


def check_products(op: str, products: str, allowed: Collection[str]) -> None:
    """Raise ValueError unless `products` is one of those that the operator takes."""
    if products not in allowed:
        raise ValueError(f"{op}: products is {products!r}, allowed are {', '.join(allowed)}")
