"""What tests, self-check and benchmarks judge by: one judge of results, and scenes of known truth.

`infodisent.testing.results` compares what kernels compute with float64; its names are here.
`infodisent.testing.scenes` draws pictures whose parts, places and masks are known.
"""

from infodisent.testing.places import similarity_at
from infodisent.testing.results import (
    Kind,
    MapGradients,
    RandomMap,
    Tolerance,
    WrongResultError,
    check_close,
    check_extremes,
    compare_with_eager,
    eager_tolerance,
    gradient_truth,
    poisoned_memory,
    random_map,
    relative,
    require,
    untouched_generators,
)

__all__ = [
    "Kind",
    "MapGradients",
    "RandomMap",
    "Tolerance",
    "WrongResultError",
    "check_close",
    "check_extremes",
    "compare_with_eager",
    "eager_tolerance",
    "gradient_truth",
    "poisoned_memory",
    "random_map",
    "relative",
    "require",
    "similarity_at",
    "untouched_generators",
]
