// rotate_pool of float32 accuracy at the speed of 16-bit integers: screen, then multiply what
// counts.
//
// Rows of U and X are rounded to integers of 16 bits, each row with a scale of its own, and
// multiplied exactly in 32 bits. With U' = t u + a and X' = s x + b, where a and b are what
// rounding left over (their norms are computed),
//
//   |U'.X' / s - t u.x| <= |U'| |b| / s + |a| |x|                          (Cauchy-Schwarz)
//
// and the float32 product differs from u.x by no more than a known multiple of |u| |x|. A pixel
// whose upper bound lies below another one's lower bound cannot win; what is left, a little more
// than one pixel a side, is multiplied in float32 by `dots`, which adds up in the order of the
// float tiles. So values and places are those of rotate_pool, bit for bit. Where a bound cannot be
// had (Inf, NaN, numbers out of range) every pixel is left.
#pragma once
#include <cstdint>

#include "rotate_pool_tiles.h"

namespace infodisent {

// A row rounded to integers.
struct RoundedRow {
  float inverse;  // of its scale; 0 for a row of zeros
  float norm;     // not below |x|; Inf where there is no bound
  float error;    // not below |b|
};

// A row in the order that `dots` reads: the first number of kLanes blocks, the second of each, ...
struct DotOrder {
  int64_t block;   // numbers that a lane adds up, as a float tile does: sum_block(channels)
  int64_t groups;  // of kLanes blocks
  int64_t size() const { return block * kLanes * groups; }
};
DotOrder dot_order(int64_t channels);

struct ScreenKernel {
  int width;  // channels of a panel of U, at most 64
  // panel[k * width + j] = row j's words at k, as in TileKernel.
  void (*pack)(const Pair* rows /* [width, depth] */, int64_t depth, Pair* panel);
  // z[r][j] = inverse[r] (row r of X' . column j of the panel) for kRows rows.
  void (*tile)(const Pair* const* row, const float* inverse, const Pair* panel, int64_t depth,
               float* z /* [kRows, width] */);
  // Bit j of left[p]: pixel p may be an extreme of channel j, z being off by `error` at most.
  void (*leave)(const float* z /* [pixels, width] */, const float* error /* [pixels] */,
                int64_t pixels, uint64_t* left);
  // Bit j of left[p]: pixel p may be the largest of channel j, being z + low[p] at least and
  // z + high[p] at most.
  void (*leave_largest)(const float* z /* [pixels, width] */, const float* low /* [pixels] */,
                        const float* high /* [pixels] */, int64_t pixels, uint64_t* left);
  // value[i] = x . u[i], rows in the order `order`, added up as the float tiles do.
  void (*dots)(const float* x, const float* const* u, int count, const DotOrder& order,
               float* value /* [count] */);
  const char* name;
};

enum class ScreenIsa : int { kAuto = 0, kAvx2 = 1, kAvx512 = 2, kPlain = 3 };

// The kernels for `isa`; nullptr where this processor or build lacks them. kPlain
// needs no more than float_tile.
const ScreenKernel* screen_kernel(ScreenIsa isa);

constexpr float kLargestScale = 3e38f;
// Largest norm of a row of integers: products of two such rows, and their partial sums, stay below
// 2^31.
float rounded_norm(int64_t channels);
// Rounds a row, its scale `most` or smaller; `words` has (channels + 1) / 2.
RoundedRow round_row(const float* row, int64_t channels, float limit, Pair* words,
                     float most = kLargestScale);
// What is wrong with a product of float32 rows of `channels` numbers, and of its image in integers,
// as parts of the product of their norms; twice what analysis says.
float product_rounding(int64_t channels);
// Both have order.size() numbers, zeros beyond the channels.
void reorder_row(const float* row, const DotOrder& order, float* out);

// z of kRows rows from number `row` on, of which `end` - 1 is the last there is, by a panel;
// inverse(row): what goes before a row's products.
template <typename Inverse>
inline void multiply_rows(const ScreenKernel& kernel, const Pair* words, int64_t depth, int64_t row,
                          int64_t end, const Pair* panel, const Inverse& inverse,
                          float* z /* [kRows, width] */) {
  const Pair* from[kRows];
  float scale[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t at = row + r < end ? row + r : end - 1;
    from[r] = words + at * depth;
    scale[r] = inverse(at);
  }
  kernel.tile(from, scale, panel, depth, z);
}
// A float tile's pool of one number: !(v <= best) holds for a NaN too, which stays.
inline void join(float v, int32_t pixel, float* best, int32_t* index) {
  if (!(v <= *best) && *best == *best) *best = v, *index = pixel;
}

// Whether `auto` screens a product of this size here, by its size and by screen_gain().
bool screen_pays(int64_t images, int64_t pixels, int64_t channels);
// How many times faster screening is than the float tiles on this processor: timed on the first
// call (about 0.1 s), on numbers drawn at random. 0 where there is nothing to compare.
double screen_gain();
constexpr double kWorthwhile = 1.08;  // gain from which on `auto` screens

}  // namespace infodisent
