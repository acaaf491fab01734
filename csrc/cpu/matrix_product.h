// Products of square float matrices on the tiles of rotate_pool, for the rotation.
#pragma once
#include <cstdint>

namespace infodisent {

// A factor, [n, n] and contiguous, or its transpose.
struct Factor {
  const float* data;
  bool transposed;
};

// Rows, or columns, first ... last - 1 of a result.
struct Range {
  int64_t first, last;
};

// What is computed of a result. The ends of the rows are multiples of 6, the rows of a tile, or n.
struct Part {
  Range rows, columns;
  bool mirrored;  // of a result with a parity: whether its other half is written, too
};

// A part of out = a b + scale * addend, all [n, n] and contiguous; `addend` may be null or `out`
// itself, other arguments must not overlap `out`. parity: what is known of the result, +1
// symmetric, -1 skew, 0 nothing: of a symmetric or skew result what the part has of the lower half
// is computed and, if asked, mirrored, which is exactly what it says also where rounding would have
// had it otherwise. Nothing else is written. The order of every sum depends on n alone:
// sum_block(n). std::invalid_argument where the processor has no tile.
void matrix_product(const Factor& a, const Factor& b, float* out, const float* addend, float scale,
                    int parity, int64_t n, const Part& part, int threads);

}  // namespace infodisent
