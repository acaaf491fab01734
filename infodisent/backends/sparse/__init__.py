"""The `sparse` backend: PyTorch underneath, no dense gradient, one file per operator's stem."""

from infodisent.backends.sparse import mx_pool, rotate_pool, rotation

__all__ = ["mx_pool", "rotate_pool", "rotation"]
