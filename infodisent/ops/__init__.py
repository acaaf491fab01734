"""The fused operators, differentiable and registered with torch (``torch.ops.infodisent``)."""

from infodisent.contract import Pool, SparsePool
from infodisent.ops.best_pixels import BestPixels, TopPixels, best_pixels
from infodisent.ops.infodisent_head import infodisent_head
from infodisent.ops.mx_pool import mx_pool
from infodisent.ops.rotate_pool import rotate_pool
from infodisent.ops.rotation import rotation
from infodisent.ops.similarity_pool import similarity_pool
from infodisent.ops.softmax_alignment import softmax_alignment
from infodisent.ops.softmax_pool import softmax_pool
from infodisent.ops.softmax_views import Views, softmax_views

OPERATORS = (
    "rotation",
    "mx_pool",
    "rotate_pool",
    "similarity_pool",
    "softmax_pool",
    "softmax_alignment",
    "infodisent_head",
)

__all__ = [
    "OPERATORS",
    "BestPixels",
    "Pool",
    "SparsePool",
    "TopPixels",
    "Views",
    "best_pixels",
    "infodisent_head",
    "mx_pool",
    "rotate_pool",
    "rotation",
    "similarity_pool",
    "softmax_alignment",
    "softmax_pool",
    "softmax_views",
]
