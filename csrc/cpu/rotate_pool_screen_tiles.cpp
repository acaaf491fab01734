#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "rotate_pool_panel.h"
#include "rotate_pool_screen.h"
#include "transpose.h"

namespace infodisent {
namespace {

static_assert(kLanes == kSquare, "rows are reordered in squares");

constexpr float kLargest = 32767.0f;
// Norms between which no product of float32 over- or underflows so that a bound would fail.
constexpr double kSmallNorm = 1e-15, kLargeNorm = 1e15;

// Sum of squares and largest magnitude; NaN and Inf show in the sum.
INFODISENT_CLONES double squares(const float* x, int64_t n, float* largest) {
  double total = 0;
  float top = 0;
  for (int64_t from = 0; from < n; from += 256) {
    const int64_t end = std::min(n, from + 256);
    float part = 0, most = 0;
#pragma omp simd reduction(+ : part) reduction(max : most)
    for (int64_t k = from; k < end; ++k) {
      const float a = std::fabs(x[k]);
      part += a * a;
      most = a > most ? a : most;
    }
    total += static_cast<double>(part);
    top = std::max(top, most);
  }
  *largest = top;
  return total;
}

// Rounds x * scale to the nearest integers; returns the sum of squares of what is left over.
INFODISENT_CLONES float round_to(const float* x, int64_t n, float scale, int16_t* out) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits behind the point
  float left = 0;
#pragma omp simd reduction(+ : left)
  for (int64_t k = 0; k < n; ++k) {
    const float t = x[k] * scale;
    const float whole = (t + kRound) - kRound;
    out[k] = static_cast<int16_t>(static_cast<int32_t>(whole));
    left += (t - whole) * (t - whole);
  }
  return left;
}

// kCount products with one x at a time: what counts is how many rows have to be fetched. kWidth: of
// the vectors that this processor has.
template <int kWidth, int kCount>
INFODISENT_INLINE void few_dots(const float* x, const float* const* u, const DotOrder& order,
                                float* value) {
  using V = typename Lanes<kWidth>::value;
  constexpr int kVectors = kLanes / kWidth;
  float sum[kCount] = {};
  int64_t at = 0;
  for (int64_t g = 0; g < order.groups; ++g) {
    V part[kCount][kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) part[n][v] = V{};
    for (int64_t i = 0; i < order.block; ++i, at += kLanes)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        V a, b;
        std::memcpy(&a, x + at + v * kWidth, sizeof a);
#pragma GCC unroll 8
        for (int n = 0; n < kCount; ++n) {
          std::memcpy(&b, u[n] + at + v * kWidth, sizeof b);
          part[n][v] += a * b;
        }
      }
    alignas(64) float blocks[kCount][kLanes];
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        std::memcpy(blocks[n] + v * kWidth, &part[n][v], sizeof(V));
    for (int l = 0; l < kLanes; ++l)
#pragma GCC unroll 8
      for (int n = 0; n < kCount; ++n) sum[n] = g + l == 0 ? blocks[n][l] : sum[n] + blocks[n][l];
  }
#pragma GCC unroll 8
  for (int n = 0; n < kCount; ++n) value[n] = sum[n];
}

#define INFODISENT_DOTS(suffix, TARGET, WIDTH)                                     \
  TARGET void dots_##suffix(const float* x, const float* const* u, int count,      \
                            const DotOrder& order, float* value) {                 \
    int n = 0;                                                                     \
    for (; n + 4 <= count; n += 4) few_dots<WIDTH, 4>(x, u + n, order, value + n); \
    if (count - n == 3)                                                            \
      few_dots<WIDTH, 3>(x, u + n, order, value + n);                              \
    else if (count - n == 2)                                                       \
      few_dots<WIDTH, 2>(x, u + n, order, value + n);                              \
    else if (count - n == 1)                                                       \
      few_dots<WIDTH, 1>(x, u + n, order, value + n);                              \
  }

// Integers in plain arithmetic: for tests, and the definition of the others.
constexpr int kPlainWidth = 16;

void pack_plain(const Pair* rows, int64_t depth, Pair* panel) {
  pack_panel<kPlainWidth>(rows, kPlainWidth, depth, panel);
}

void tile_plain(const Pair* const* row, const float* inverse, const Pair* panel, int64_t depth,
                float* z) {
  const auto low = [](Pair p) { return static_cast<int32_t>(static_cast<int16_t>(p.bits)); };
  const auto high = [](Pair p) { return static_cast<int32_t>(static_cast<int16_t>(p.bits >> 16)); };
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kPlainWidth; ++j) {
      int32_t sum = 0;
      for (int64_t k = 0; k < depth; ++k) {
        const Pair x = row[r][k], u = panel[k * kPlainWidth + j];
        sum += low(x) * low(u) + high(x) * high(u);
      }
      z[r * kPlainWidth + j] = inverse[r] * static_cast<float>(sum);
    }
}

void leave_plain(const float* z, const float* error, int64_t pixels, uint64_t* left) {
  float high[kPlainWidth], low[kPlainWidth];
  std::fill_n(high, kPlainWidth, FLT_TRUE_MIN);
  std::fill_n(low, kPlainWidth, FLT_TRUE_MIN);
  for (int64_t p = 0; p < pixels; ++p)
    for (int j = 0; j < kPlainWidth; ++j) {
      high[j] = std::max(high[j], z[p * kPlainWidth + j] - error[p]);
      low[j] = std::max(low[j], -z[p * kPlainWidth + j] - error[p]);
    }
  for (int64_t p = 0; p < pixels; ++p) {
    left[p] = 0;
    for (int j = 0; j < kPlainWidth; ++j) {
      const float v = z[p * kPlainWidth + j];
      if (v + error[p] >= high[j] || error[p] - v >= low[j]) left[p] |= uint64_t{1} << j;
    }
  }
}

void largest_plain(const float* z, const float* low, const float* high, int64_t pixels,
                   uint64_t* left) {
  float most[kPlainWidth];
  std::fill_n(most, kPlainWidth, -std::numeric_limits<float>::infinity());
  for (int64_t p = 0; p < pixels; ++p)
    for (int j = 0; j < kPlainWidth; ++j)
      most[j] = std::max(most[j], z[p * kPlainWidth + j] + low[p]);
  for (int64_t p = 0; p < pixels; ++p) {
    left[p] = 0;
    for (int j = 0; j < kPlainWidth; ++j)
      if (z[p * kPlainWidth + j] + high[p] >= most[j]) left[p] |= uint64_t{1} << j;
  }
}

#ifdef INFODISENT_X86
#define V3 __attribute__((target("arch=x86-64-v3")))
#define V4_VNNI __attribute__((target("arch=x86-64-v4,avx512vnni")))

INFODISENT_DOTS(avx2, V3, 8)  // with a fused multiply-add, as the float tiles
constexpr ScreenKernel k_plain{kPlainWidth,   pack_plain, tile_plain, leave_plain,
                               largest_plain, dots_avx2,  "plain"};

INFODISENT_DOTS(avx512, V4_VNNI, 16)

V3 void pack_avx2(const Pair* rows, int64_t depth, Pair* panel) {
  pack_panel<16>(rows, 16, depth, panel);
}

// Not __m256i, which may be an alias of anything and so is kept in memory.
typedef int32_t Int8 __attribute__((vector_size(32)));
typedef int32_t Int16 __attribute__((vector_size(64)));

V3 void tile_avx2(const Pair* const* row, const float* inverse, const Pair* panel, int64_t depth,
                  float* z) {
  Int8 sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Int8{};
  const Pair* from[kRows];
  for (int r = 0; r < kRows; ++r) from[r] = row[r];
  for (int64_t k = 0; k < depth; ++k) {
    const __m256i* at = reinterpret_cast<const __m256i*>(panel + k * 16);
    const __m256i u0 = _mm256_loadu_si256(at), u1 = _mm256_loadu_si256(at + 1);
    __builtin_prefetch(panel + (k + 8) * 16);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = _mm256_set1_epi32(static_cast<int>(from[r][k].bits));
      sum[r][0] += (Int8)_mm256_madd_epi16(u0, x);
      sum[r][1] += (Int8)_mm256_madd_epi16(u1, x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < 2; ++v) {
      const Lanes<8>::value y = __builtin_convertvector(sum[r][v], Lanes<8>::value) * inverse[r];
      std::memcpy(z + 16 * r + 8 * v, &y, sizeof y);
    }
}

V3 void leave_avx2(const float* z, const float* error, int64_t pixels, uint64_t* left) {
  const __m256 none = _mm256_setzero_ps();
  __m256 high[2], low[2];
  for (int v = 0; v < 2; ++v) high[v] = low[v] = _mm256_set1_ps(FLT_TRUE_MIN);
  for (int64_t p = 0; p < pixels; ++p) {
    const __m256 e = _mm256_set1_ps(error[p]);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256 y = _mm256_loadu_ps(z + 16 * p + 8 * v);
      high[v] = _mm256_max_ps(high[v], _mm256_sub_ps(y, e));
      low[v] = _mm256_max_ps(low[v], _mm256_sub_ps(_mm256_sub_ps(none, y), e));
    }
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const __m256 e = _mm256_set1_ps(error[p]);
    uint64_t bits = 0;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256 y = _mm256_loadu_ps(z + 16 * p + 8 * v);
      const __m256 above = _mm256_cmp_ps(_mm256_add_ps(y, e), high[v], _CMP_GE_OQ);
      const __m256 below = _mm256_cmp_ps(_mm256_sub_ps(e, y), low[v], _CMP_GE_OQ);
      bits |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_or_ps(above, below))) << (8 * v);
    }
    left[p] = bits;
  }
}

V3 void largest_avx2(const float* z, const float* low, const float* high, int64_t pixels,
                     uint64_t* left) {
  __m256 most[2];
  for (int v = 0; v < 2; ++v) most[v] = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t p = 0; p < pixels; ++p) {
    const __m256 least = _mm256_set1_ps(low[p]);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v)
      most[v] = _mm256_max_ps(most[v], _mm256_add_ps(_mm256_loadu_ps(z + 16 * p + 8 * v), least));
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const __m256 top = _mm256_set1_ps(high[p]);
    uint64_t bits = 0;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256 y = _mm256_add_ps(_mm256_loadu_ps(z + 16 * p + 8 * v), top);
      const int mask = _mm256_movemask_ps(_mm256_cmp_ps(y, most[v], _CMP_GE_OQ));
      bits |= static_cast<uint64_t>(mask) << (8 * v);
    }
    left[p] = bits;
  }
}
constexpr ScreenKernel k_avx2{16,           pack_avx2, tile_avx2, leave_avx2,
                              largest_avx2, dots_avx2, "avx2"};

// GCC 12 takes the undefined vectors in its own header for mistakes (bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

constexpr int kVectors = 4, kWide = 16 * kVectors;

V4_VNNI void pack_avx512(const Pair* rows, int64_t depth, Pair* panel) {
  pack_panel<kWide>(rows, kWide, depth, panel);
}

V4_VNNI void tile_avx512(const Pair* const* row, const float* inverse, const Pair* panel,
                         int64_t depth, float* z) {
  Int16 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Int16{};
  const Pair* from[kRows];
  for (int r = 0; r < kRows; ++r) from[r] = row[r];
  for (int64_t k = 0; k < depth; ++k) {
    const Pair* at = panel + k * kWide;
    __m512i u[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      u[v] = _mm512_loadu_si512(at + 16 * v);
      __builtin_prefetch(at + 8 * kWide + 16 * v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(from[r][k].bits));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sum[r][v] = (Int16)_mm512_dpwssd_epi32((__m512i)sum[r][v], u[v], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Lanes<16>::value y = __builtin_convertvector(sum[r][v], Lanes<16>::value) * inverse[r];
      std::memcpy(z + kWide * r + 16 * v, &y, sizeof y);
    }
}

V4_VNNI void leave_avx512(const float* z, const float* error, int64_t pixels, uint64_t* left) {
  const __m512 none = _mm512_setzero_ps();
  __m512 high[kVectors], low[kVectors];
  for (int v = 0; v < kVectors; ++v) high[v] = low[v] = _mm512_set1_ps(FLT_TRUE_MIN);
  for (int64_t p = 0; p < pixels; ++p) {
    const __m512 e = _mm512_set1_ps(error[p]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 y = _mm512_loadu_ps(z + kWide * p + 16 * v);
      high[v] = _mm512_max_ps(high[v], _mm512_sub_ps(y, e));
      low[v] = _mm512_max_ps(low[v], _mm512_sub_ps(_mm512_sub_ps(none, y), e));
    }
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const __m512 e = _mm512_set1_ps(error[p]);
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 y = _mm512_loadu_ps(z + kWide * p + 16 * v);
      const __mmask16 above = _mm512_cmp_ps_mask(_mm512_add_ps(y, e), high[v], _CMP_GE_OQ);
      const __mmask16 below = _mm512_cmp_ps_mask(_mm512_sub_ps(e, y), low[v], _CMP_GE_OQ);
      bits |= static_cast<uint64_t>(above | below) << (16 * v);
    }
    left[p] = bits;
  }
}

V4_VNNI void largest_avx512(const float* z, const float* low, const float* high, int64_t pixels,
                            uint64_t* left) {
  __m512 most[kVectors];
  for (int v = 0; v < kVectors; ++v)
    most[v] = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t p = 0; p < pixels; ++p) {
    const __m512 least = _mm512_set1_ps(low[p]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      most[v] =
          _mm512_max_ps(most[v], _mm512_add_ps(_mm512_loadu_ps(z + kWide * p + 16 * v), least));
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const __m512 top = _mm512_set1_ps(high[p]);
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 y = _mm512_add_ps(_mm512_loadu_ps(z + kWide * p + 16 * v), top);
      bits |= static_cast<uint64_t>(_mm512_cmp_ps_mask(y, most[v], _CMP_GE_OQ)) << (16 * v);
    }
    left[p] = bits;
  }
}
constexpr ScreenKernel k_avx512{kWide,          pack_avx512, tile_avx512, leave_avx512,
                                largest_avx512, dots_avx512, "avx512vnni"};
#pragma GCC diagnostic pop
#else
INFODISENT_DOTS(plain, , 4)
constexpr ScreenKernel k_plain{kPlainWidth,   pack_plain, tile_plain, leave_plain,
                               largest_plain, dots_plain, "plain"};
#endif

}  // namespace

const ScreenKernel* screen_kernel(ScreenIsa isa) {
  if (isa == ScreenIsa::kPlain) return float_tile(Isa::kAuto) == nullptr ? nullptr : &k_plain;
#ifdef INFODISENT_X86
  const bool v4 = float_tile(Isa::kAvx512) != nullptr && __builtin_cpu_supports("avx512vnni");
  if (v4 && (isa == ScreenIsa::kAuto || isa == ScreenIsa::kAvx512)) return &k_avx512;
  const bool v3 = float_tile(Isa::kAvx2) != nullptr;
  if (v3 && (isa == ScreenIsa::kAuto || isa == ScreenIsa::kAvx2)) return &k_avx2;
#endif
  return nullptr;
}

DotOrder dot_order(int64_t channels) {
  const int64_t block = sum_block(channels);
  return {block, std::max<int64_t>(1, (channels + block * kLanes - 1) / (block * kLanes))};
}

float rounded_norm(int64_t channels) {
  return std::floor(std::sqrt(2147483647.0f) - 0.5f * std::sqrt(static_cast<float>(channels))) -
         2.0f;
}

float product_rounding(int64_t channels) {
  const DotOrder order = dot_order(channels);
  const float terms = static_cast<float>(order.block + kLanes * order.groups + 8);
  return 2 * terms * 0x1p-24f;
}

RoundedRow round_row(const float* row, int64_t channels, float limit, Pair* words, float most) {
  float largest;
  const double norm = std::sqrt(squares(row, channels, &largest));
  int16_t* out = reinterpret_cast<int16_t*>(words);
  const int64_t padded = (channels + 1) / 2 * 2;
  const bool bounded = kSmallNorm <= norm && norm <= kLargeNorm;  // false for NaN
  if (!bounded) {
    std::memset(out, 0, static_cast<size_t>(padded) * sizeof *out);
    const float unbounded = std::numeric_limits<float>::infinity();
    return {0.0f, largest == 0 && norm == 0 ? 0.0f : unbounded, 0.0f};
  }
  const float scale =
      std::min({static_cast<float>(limit / norm * 0.9999), kLargest / largest, most});
  const float left = round_to(row, channels, scale, out);
  if (padded != channels) out[channels] = 0;
  // the products with the scale are themselves rounded: by 2^-24 of a norm below 2^15.5
  return {1.0f / scale, static_cast<float>(norm * 1.0001), std::sqrt(left) * 1.001f + 0.004f};
}

INFODISENT_CLONES void reorder_row(const float* row, const DotOrder& order, float* out) {
  for (int64_t g = 0; g < order.groups; ++g, row += order.block * kLanes) {
    int64_t i = 0;
    for (; i + kSquare <= order.block; i += kSquare, out += kSquare * kLanes) {
      Words square[kSquare];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l)
        std::memcpy(&square[l], row + l * order.block + i, sizeof(Words));
      transpose(square);
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) std::memcpy(out + l * kSquare, &square[l], sizeof(Words));
    }
    for (; i < order.block; ++i)
      for (int l = 0; l < kLanes; ++l) *out++ = row[l * order.block + i];
  }
}

}  // namespace infodisent
