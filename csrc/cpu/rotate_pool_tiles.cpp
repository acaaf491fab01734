#include "rotate_pool_tiles.h"

#include <algorithm>
#include <cstring>

#include "rotate_pool_panel.h"

namespace infodisent {
namespace {

// Most products that are added up before they join the sum: shorter chains, smaller rounding
// errors. At 128 they are below those of the library's product; 64 costs 1 %, 32 costs 3 % of the
// speed.
constexpr int64_t kMostSummed = 128;

// Row `r` of the result joins the pool of its image. !(v <= high) holds for a NaN too, which is
// taken once and stays. A plain loop: compilers turn comparisons of vector types into scalar code.
template <int kWidth, typename E>
INFODISENT_INLINE void join(const TileTask<E>& task, int r, const float* row) {
  const PoolState& s = task.state[r];
  const int32_t here = task.pixel[r];
#pragma GCC ivdep
  for (int j = 0; j < kWidth; ++j) {
    const float high = s.pos[j], low = s.neg[j], v = row[j];
    const bool above = !(v <= high) & (high == high), below = !(-v <= low) & (low == low);
    s.pos[j] = above ? v : high;
    s.pos_index[j] = above ? here : s.pos_index[j];
    s.neg[j] = below ? -v : low;
    s.neg_index[j] = below ? here : s.neg_index[j];
  }
}

template <int kWidth>
INFODISENT_INLINE void join_view(float* best, int32_t* index, const float* row, float scale,
                                 float shift, int32_t here) {
#pragma GCC ivdep
  for (int j = 0; j < kWidth; ++j) {
    const float high = best[j], v = scale * row[j] + shift;
    const bool above = !(v <= high) & (high == high);
    best[j] = above ? v : high;
    index[j] = above ? here : index[j];
  }
}

template <int kWidth, typename E>
INFODISENT_INLINE void join_views(const ViewTask<E>& task, int r, const float* row) {
  const PoolState& s = task.state[r];
  const int32_t here = task.pixel[r];
  join_view<kWidth>(s.pos, s.pos_index, row, task.scale[0][r], task.shift[0][r], here);
  if (task.views > 1)
    join_view<kWidth>(s.neg, s.neg_index, row, task.scale[1][r], task.shift[1][r], here);
}

template <int kCount, int kVectors, int kStep>
INFODISENT_INLINE void float_product(const float* const* rows, const float* panel, int64_t depth,
                                     int64_t block, float* sum /* [kRows, kWidth] */) {
  using V = typename Lanes<kCount>::value;
  constexpr int kWidth = kCount * kVectors;
  const float* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = rows[r];
  for (int64_t start = 0; start < depth; start += block) {
    const int64_t end = std::min(depth, start + block);
    V part[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) part[r][v] = V{};
    for (int64_t k = start; k < end; ++k) {
      V u[kVectors];
      const float* from = panel + k * kWidth;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        std::memcpy(&u[v], from + v * kCount, sizeof(V));
        __builtin_prefetch(from + 8 * kWidth + v * kCount);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const float x = row[r][k * kStep];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) part[r][v] += u[v] * x;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        float* to = sum + r * kWidth + v * kCount;
        if (start != 0) {
          V before;
          std::memcpy(&before, to, sizeof before);
          part[r][v] += before;
        }
        std::memcpy(to, &part[r][v], sizeof(V));
      }
  }
}
#define FLOAT_TILE(suffix, TARGET, LANES, VECTORS)                                                 \
  static_assert(LANES * VECTORS <= kMostWidth, "too large a tile");                                \
  TARGET void pack_##suffix(const float* u, int64_t channels, int64_t depth, float* panel) {       \
    pack_panel<LANES * VECTORS>(u, channels, depth, panel);                                        \
  }                                                                                                \
  TARGET void product_##suffix(const float* const* row, bool packed, const float* panel,           \
                               int64_t depth, int64_t block, float* out) {                         \
    if (packed)                                                                                    \
      float_product<LANES, VECTORS, kRows>(row, panel, depth, block, out);                         \
    else                                                                                           \
      float_product<LANES, VECTORS, 1>(row, panel, depth, block, out);                             \
  }                                                                                                \
  TARGET void tile_##suffix(const TileTask<float>& task, bool packed, const float* panel,          \
                            int64_t depth, int64_t block) {                                        \
    alignas(64) float sum[kRows * LANES * VECTORS];                                                \
    product_##suffix(task.row, packed, panel, depth, block, sum);                                  \
    for (int r = 0; r < task.rows; ++r) join<LANES * VECTORS>(task, r, sum + r * LANES * VECTORS); \
  }                                                                                                \
  TARGET void views_##suffix(const ViewTask<float>& task, bool packed, const float* panel,         \
                             int64_t depth, int64_t block) {                                       \
    alignas(64) float sum[kRows * LANES * VECTORS];                                                \
    product_##suffix(task.row, packed, panel, depth, block, sum);                                  \
    for (int r = 0; r < task.rows; ++r)                                                            \
      join_views<LANES * VECTORS>(task, r, sum + r * LANES * VECTORS);                             \
  }                                                                                                \
  constexpr TileKernel<float> k_##suffix{LANES * VECTORS, pack_##suffix, tile_##suffix,            \
                                         views_##suffix,  #suffix,       product_##suffix};

// As many sums as the registers hold beside one row of the panel.
#ifdef INFODISENT_X86
#define V3 __attribute__((target("arch=x86-64-v3")))
#define V4 __attribute__((target("arch=x86-64-v4")))
FLOAT_TILE(avx2, V3, 8, 2)
FLOAT_TILE(avx512, V4, 16, 4)

#define V4_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16")))
constexpr int kPairVectors = 4;

template <int kStep>
V4_BF16 INFODISENT_INLINE void pair_product(const TileTask<Pair>& task, const Pair* panel,
                                            int64_t depth, float* out /* [kRows, kWidth] */) {
  constexpr int kWidth = 16 * kPairVectors;
  const Pair* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = task.row[r];
  __m512 sum[kRows][kPairVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kPairVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k) {
    const Pair* from = panel + k * kWidth;
    __m512i u[kPairVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kPairVectors; ++v) {
      u[v] = _mm512_loadu_si512(from + 16 * v);
      __builtin_prefetch(from + 8 * kWidth + 16 * v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(row[r][k * kStep].bits));
#pragma GCC unroll 8
      for (int v = 0; v < kPairVectors; ++v)
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)u[v], (__m512bh)x);
    }
  }
  std::memcpy(out, sum, sizeof sum);
}

V4_BF16 void pack_pairs(const Pair* u, int64_t channels, int64_t depth, Pair* panel) {
  pack_panel<16 * kPairVectors>(u, channels, depth, panel);
}
V4_BF16 INFODISENT_INLINE void multiply_pairs(const TileTask<Pair>& task, bool packed,
                                              const Pair* panel, int64_t depth, float* out) {
  if (packed)
    pair_product<kRows>(task, panel, depth, out);
  else
    pair_product<1>(task, panel, depth, out);
}
V4_BF16 void tile_pairs(const TileTask<Pair>& task, bool packed, const Pair* panel, int64_t depth,
                        int64_t) {
  constexpr int kWidth = 16 * kPairVectors;
  alignas(64) float sum[kRows * kWidth];
  multiply_pairs(task, packed, panel, depth, sum);
  for (int r = 0; r < task.rows; ++r) join<kWidth>(task, r, sum + r * kWidth);
}
V4_BF16 void views_pairs(const ViewTask<Pair>& task, bool packed, const Pair* panel, int64_t depth,
                         int64_t) {
  constexpr int kWidth = 16 * kPairVectors;
  alignas(64) float sum[kRows * kWidth];
  multiply_pairs(task, packed, panel, depth, sum);
  for (int r = 0; r < task.rows; ++r) join_views<kWidth>(task, r, sum + r * kWidth);
}
constexpr TileKernel<Pair> k_pairs{16 * kPairVectors, pack_pairs,   tile_pairs,
                                   views_pairs,       "avx512bf16", nullptr};
#endif

#ifdef __aarch64__  // 32 registers of 4 numbers, also where SVE has longer ones
FLOAT_TILE(neon, , 4, 4)
#endif

}  // namespace

int64_t sum_block(int64_t channels) {
  if (channels < kScreened) return kMostSummed;
  const int64_t groups = (channels + kLanes * kMostSummed - 1) / (kLanes * kMostSummed);
  return (channels + groups * kLanes - 1) / (groups * kLanes);
}

const TileKernel<float>* float_tile(Isa isa) {
#ifdef INFODISENT_X86
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512cd");
  if (v4 && (isa == Isa::kAuto || isa == Isa::kAvx512)) return &k_avx512;
  if (v3 && (isa == Isa::kAuto || isa == Isa::kAvx2)) return &k_avx2;
#endif
#ifdef __aarch64__
  if (isa == Isa::kAuto) return &k_neon;
#endif
  (void)isa;
  return nullptr;
}

const TileKernel<Pair>* pair_tile() {
#ifdef INFODISENT_X86
  if (float_tile(Isa::kAvx512) != nullptr && __builtin_cpu_supports("avx512bf16")) return &k_pairs;
#endif
  return nullptr;
}

}  // namespace infodisent
