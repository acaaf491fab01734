#include "rotate_pool_tiles.h"

#include <algorithm>
#include <cstring>

#include "transpose.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define INFODISENT_X86 1
#include <immintrin.h>
#endif

namespace infodisent {
namespace {

// Products that are added up before they join the sum: shorter chains, smaller rounding errors.
// At 128 they are below those of the library's product; 64 costs 5 % of the speed.
constexpr int64_t kDepth = 128;

template <int kLanes>
struct Lanes {
  typedef float value __attribute__((vector_size(4 * kLanes)));
};

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

template <int kLanes, int kVectors, int kStep>
INFODISENT_INLINE void float_product(const TileTask<float>& task, const float* panel,
                                     int64_t depth) {
  using V = typename Lanes<kLanes>::value;
  constexpr int kWidth = kLanes * kVectors;
  const float* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = task.row[r];
  alignas(64) float sum[kRows][kWidth];
  for (int64_t start = 0; start < depth; start += kDepth) {
    const int64_t end = std::min(depth, start + kDepth);
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
        std::memcpy(&u[v], from + v * kLanes, sizeof(V));
        __builtin_prefetch(from + 8 * kWidth + v * kLanes);
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
        float* to = sum[r] + v * kLanes;
        if (start != 0) {
          V before;
          std::memcpy(&before, to, sizeof before);
          part[r][v] += before;
        }
        std::memcpy(to, &part[r][v], sizeof(V));
      }
  }
  for (int r = 0; r < task.rows; ++r) join<kWidth>(task, r, sum[r]);
}

template <int kWidth, typename E>
INFODISENT_INLINE void pack_panel(const E* u, int64_t channels, int64_t depth, E* panel) {
  static_assert(sizeof(E) == sizeof(uint32_t) && kWidth % 8 == 0, "words of 32 bits");
  const int width = static_cast<int>(std::min<int64_t>(kWidth, channels));
  int64_t done = 0;
  if (kWidth % kSquare == 0 && width == kWidth) {
    for (; done + kSquare <= depth; done += kSquare)
      for (int c = 0; c < kWidth; c += kSquare) {
        Words square[kSquare];
#pragma GCC unroll 16
        for (int i = 0; i < kSquare; ++i)
          std::memcpy(&square[i], u + (c + i) * depth + done, sizeof(Words));
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kSquare; ++i)
          std::memcpy(panel + (done + i) * kWidth + c, &square[i], sizeof(Words));
      }
  }
  for (; done < depth; ++done)
    for (int j = 0; j < kWidth; ++j)
      panel[done * kWidth + j] = j < width ? u[j * depth + done] : E{};
}

#define FLOAT_TILE(suffix, TARGET, LANES, VECTORS)                                                \
  TARGET void pack_##suffix(const float* u, int64_t channels, int64_t depth, float* panel) {      \
    pack_panel<LANES * VECTORS>(u, channels, depth, panel);                                       \
  }                                                                                               \
  TARGET void tile_##suffix(const TileTask<float>& task, bool packed, const float* panel,         \
                            int64_t depth) {                                                      \
    if (packed)                                                                                   \
      float_product<LANES, VECTORS, kRows>(task, panel, depth);                                   \
    else                                                                                          \
      float_product<LANES, VECTORS, 1>(task, panel, depth);                                       \
  }                                                                                               \
  constexpr TileKernel<float> k_##suffix{LANES * VECTORS, pack_##suffix, tile_##suffix, #suffix}; \
  static_assert(LANES * VECTORS <= kMostWidth, "too large a tile");

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
                                            int64_t depth) {
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
  for (int r = 0; r < task.rows; ++r) {
    alignas(64) float values[kWidth];
    std::memcpy(values, sum[r], sizeof values);
    join<kWidth>(task, r, values);
  }
}

V4_BF16 void pack_pairs(const Pair* u, int64_t channels, int64_t depth, Pair* panel) {
  pack_panel<16 * kPairVectors>(u, channels, depth, panel);
}
V4_BF16 void tile_pairs(const TileTask<Pair>& task, bool packed, const Pair* panel, int64_t depth) {
  if (packed)
    pair_product<kRows>(task, panel, depth);
  else
    pair_product<1>(task, panel, depth);
}
constexpr TileKernel<Pair> k_pairs{16 * kPairVectors, pack_pairs, tile_pairs, "avx512bf16"};
#endif

}  // namespace

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
