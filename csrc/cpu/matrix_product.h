// Products of square float matrices on the tiles of rotate_pool, for the rotation.
#pragma once
#include <cstdint>

namespace infodisent {

// A factor, [n, n] and contiguous, or its transpose.
struct Factor {
  const float* data;
  bool transposed;
};

// Rows first ... last - 1 of a result; both are multiples of 6, the rows of a tile, or `last` is n.
struct Rows {
  int64_t first, last;
};

// The given rows of out = a b + scale * addend, all [n, n] and contiguous; `addend` may be null or
// `out` itself, other arguments must not overlap `out`. parity: what is known of the result, +1
// symmetric, -1 skew, 0 nothing: of a symmetric or skew result the lower half is computed and
// mirrored, which is exactly what it says also where rounding would have had it otherwise. The
// order of every sum depends on n alone: sum_block(n). Where the rows are not all, no other row is
// written: nothing is mirrored, and what these have above the diagonal is not written.
// std::invalid_argument where the processor has no tile.
void matrix_product(const Factor& a, const Factor& b, float* out, const float* addend, float scale,
                    int parity, int64_t n, Rows rows, int threads);

}  // namespace infodisent
