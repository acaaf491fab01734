// The innermost part of rotate_pool: a few rows of X times a panel of U, and the pool of the result
// before it leaves the core. One version per instruction set, chosen at run time.
#pragma once
#include <cstdint>

#include "dtypes.h"

// Where functions can be compiled for instruction sets of their own, and have their intrinsics.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define INFODISENT_X86 1
#include <immintrin.h>
#endif

namespace infodisent {

template <int kCount>
struct Lanes {
  typedef float value __attribute__((vector_size(4 * kCount)));
};

// What the pool of one image knows so far about the channels of a panel; each array is as long as
// the panel is wide.
struct PoolState {
  float* pos;
  float* neg;
  int32_t* pos_index;
  int32_t* neg_index;
};

// Rows of X that a tile multiplies.
constexpr int kRows = 6;
constexpr int kMostWidth = 64;

// One tile of work.
template <typename E>
struct TileTask {
  // Row r of X is row[r][0], row[r][step], row[r][2 * step], ...: step is 1 for rows as they lie in
  // memory and kRows for packed ones.
  const E* row[kRows];
  int32_t pixel[kRows];
  PoolState state[kRows];
  int rows;  // of these count; the others may be anything readable
};

// The same for one or two views of the products, scale * product + shift with numbers of the row's
// own. Of the first the largest goes to pos and pos_index, of the second to neg and neg_index.
template <typename E>
struct ViewTask : TileTask<E> {
  float scale[2][kRows], shift[2][kRows];
  int views;
};

// Elements of X and U as a tile multiplies them: float, or two neighbouring bfloat16 in 32 bits.
struct Pair {
  uint32_t bits;
};

template <typename E>
struct TileKernel {
  int width;  // columns of a panel of U
  // panel[k * width + j] = U[c0 + j][k], 0 beyond the last channel; `channels` rows are left.
  void (*pack)(const E* u /* [channels, depth] */, int64_t channels, int64_t depth, E* panel);
  // `block`: products that are added up before they join the sum, see sum_block; no matter for
  // pairs.
  void (*tile)(const TileTask<E>& task, bool packed, const E* panel, int64_t depth, int64_t block);
  void (*views)(const ViewTask<E>& task, bool packed, const E* panel, int64_t depth, int64_t block);
  const char* name;
  // The product alone, out[r][j] [kRows, width]; nullptr for pairs.
  void (*product)(const E* const* row, bool packed, const E* panel, int64_t depth, int64_t block,
                  float* out);
};

// The sum of a product of float32 is made of sums of so many of its terms, one after the other,
// which are added up in their order. From kScreened channels on there are kLanes of them, or a
// multiple, of one size, so that a product can be had by itself, a block to a lane
// (rotate_pool_screen.h).
constexpr int64_t kScreened = 512;
constexpr int kLanes = 16;
int64_t sum_block(int64_t channels);

enum class Isa : int { kAuto = 0, kAvx2 = 1, kAvx512 = 2 };

// The tile for `isa`; nullptr where this processor (or this build) has no such instructions. Pairs
// need AVX512-BF16. Where there is none, a library's product and mx_pool do the work.
const TileKernel<float>* float_tile(Isa isa);
const TileKernel<Pair>* pair_tile();

}  // namespace infodisent
