#include "half_rows.h"

#include <cstring>

#include "rotate_pool_tiles.h"

namespace infodisent {

#ifdef INFODISENT_X86
namespace {

// GCC vectorises no conversion from _Float16 before AVX512-FP16, hence by hand. (With a mask of
// everything, as GCC 12 warns of its own header otherwise.)
struct Wide16 {
  using V = __m512;
  static constexpr int64_t kLanes = 16;
};
struct Wide8 {
  using V = __m256;
  static constexpr int64_t kLanes = 8;
};
#define V4 __attribute__((target("arch=x86-64-v4")))
#define V3 __attribute__((target("arch=x86-64-v3")))

V4 inline __m512 read(const Float16* x, Wide16) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
V3 inline __m256 read(const Float16* x, Wide8) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}

#define ADD_HALF_ROWS(TARGET, W)                                                                   \
  TARGET void add(float* sum, int64_t width, float a, const Float16* x, float b, const Float16* y, \
                  W wide) {                                                                        \
    using V = W::V;                                                                                \
    const V va = a - V{}, vb = b - V{};                                                            \
    const bool both = x != nullptr && y != nullptr;                                                \
    const Float16* row = x != nullptr ? x : y;                                                     \
    const float factor = x != nullptr ? a : b;                                                     \
    if (row == nullptr) return;                                                                    \
    int64_t j = 0;                                                                                 \
    for (; j + W::kLanes <= width; j += W::kLanes) {                                               \
      V total;                                                                                     \
      std::memcpy(&total, sum + j, sizeof total);                                                  \
      if (both)                                                                                    \
        total += va * read(x + j, wide) + vb * read(y + j, wide);                                  \
      else                                                                                         \
        total += (x != nullptr ? va : vb) * read(row + j, wide);                                   \
      std::memcpy(sum + j, &total, sizeof total);                                                  \
    }                                                                                              \
    for (; j < width; ++j)                                                                         \
      sum[j] += both ? a * widen(x[j]) + b * widen(y[j]) : factor * widen(row[j]);                 \
  }                                                                                                \
  TARGET void add_##W(float* sum, int64_t width, float a, const Float16* x, float b,               \
                      const Float16* y) {                                                          \
    add(sum, width, a, x, b, y, W{});                                                              \
  }
ADD_HALF_ROWS(V4, Wide16)
ADD_HALF_ROWS(V3, Wide8)

}  // namespace

AddHalfRows add_half_rows() {
  if (float_tile(Isa::kAvx512) != nullptr) return add_Wide16;
  if (float_tile(Isa::kAvx2) != nullptr && __builtin_cpu_supports("f16c")) return add_Wide8;
  return nullptr;
}
#else
AddHalfRows add_half_rows() { return nullptr; }
#endif

}  // namespace infodisent
