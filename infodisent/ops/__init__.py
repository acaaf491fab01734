"""The fused operators, differentiable and registered with torch (``torch.ops.infodisent``)."""

from infodisent.contract import SparsePool
from infodisent.ops.infodisent_head import infodisent_head
from infodisent.ops.mx_pool import mx_pool
from infodisent.ops.rotate_pool import rotate_pool
from infodisent.ops.rotation import rotation

OPERATORS = ("rotation", "mx_pool", "rotate_pool", "infodisent_head")

__all__ = ["OPERATORS", "SparsePool", "infodisent_head", "mx_pool", "rotate_pool", "rotation"]
