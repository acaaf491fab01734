"""The fused operators, differentiable and registered with torch (``torch.ops.infodisent``)."""

from infodisent.contract import Pool, SparsePool
from infodisent.ops.infodisent_head import infodisent_head
from infodisent.ops.mx_pool import mx_pool
from infodisent.ops.rotate_pool import rotate_pool
from infodisent.ops.rotation import rotation
from infodisent.ops.softmax_alignment import softmax_alignment
from infodisent.ops.softmax_pool import softmax_pool

OPERATORS = (
    "rotation",
    "mx_pool",
    "rotate_pool",
    "infodisent_head",
    "softmax_pool",
    "softmax_alignment",
)

__all__ = [
    "OPERATORS",
    "Pool",
    "SparsePool",
    "infodisent_head",
    "mx_pool",
    "rotate_pool",
    "rotation",
    "softmax_alignment",
    "softmax_pool",
]
