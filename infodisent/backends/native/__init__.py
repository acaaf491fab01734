"""The `native` backend: library products, and compiled code (``csrc/``) for all between them."""

from infodisent.backends.native import mx_pool, rotate_pool

__all__ = ["mx_pool", "rotate_pool"]
