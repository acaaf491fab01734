#include "rotate_pool_pack.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace infodisent {
namespace {

// Numbers that are widened at a time: widening vectorises, spreading over the tiles does not.
constexpr int64_t kBlock = 256;

// Neighbouring pixels of one channel; `out` is where that channel is in the first tile.
template <typename E>
INFODISENT_INLINE void spread(const E* line, int64_t pixels, int64_t row, int64_t tile, E* out) {
  static_assert(kRows == 6 && sizeof(E) == 4, "copies of 24 bytes");
  int64_t p = 0;
  out += row / kRows * tile;
  if (const int64_t slot = row % kRows; slot != 0) {
    const int64_t n = std::min(kRows - slot, pixels);
    for (; p < n; ++p) out[slot + p] = line[p];
    out += tile;
  }
  for (; p + kRows <= pixels; p += kRows, out += tile) std::memcpy(out, line + p, sizeof(E) * 6);
  for (int64_t r = 0; p < pixels; ++p, ++r) out[r] = line[p];
}

template <typename T>
INFODISENT_INLINE void pack(const Map<T>& x, int64_t image, int64_t k0, int64_t k1, int64_t row0,
                            int64_t tile, float* out) {
  const T* from = x.data + image * x.image_stride;
  float wide[kBlock];
  if (x.pixel_stride == 1) {
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t p = 0; p < x.pixels; p += kBlock) {
        const T* line = from + k * x.channel_stride + p;
        const int64_t n = std::min(kBlock, x.pixels - p);
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j) wide[j] = static_cast<float>(widen(line[j]));
        spread(wide, n, row0 + p, tile, out + k * kRows);
      }
    return;
  }
  for (int64_t p = 0; p < x.pixels; ++p) {
    const T* pixel = from + p * x.pixel_stride;
    float* to = out + (row0 + p) / kRows * tile + (row0 + p) % kRows;
    for (int64_t k = k0; k < k1; k += kBlock) {
      const int64_t n = std::min(kBlock, k1 - k);
      if (x.channel_stride == 1)
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j) wide[j] = static_cast<float>(widen(pixel[k + j]));
      else
        for (int64_t j = 0; j < n; ++j)
          wide[j] = static_cast<float>(widen(pixel[(k + j) * x.channel_stride]));
      for (int64_t j = 0; j < n; ++j) to[(k + j) * kRows] = wide[j];
    }
  }
}

#define PACK(T, suffix)                                                                        \
  INFODISENT_CLONES void pack_##suffix(const Map<T>& x, int64_t image, int64_t k0, int64_t k1, \
                                       int64_t row0, int64_t tile, float* out) {               \
    pack(x, image, k0, k1, row0, tile, out);                                                   \
  }                                                                                            \
  inline void do_pack(const Map<T>& x, int64_t image, int64_t k0, int64_t k1, int64_t row0,    \
                      int64_t tile, float* out) {                                              \
    pack_##suffix(x, image, k0, k1, row0, tile, out);                                          \
  }
PACK(float, f32)
PACK(BFloat16, bf16)
PACK(Float16, f16)

INFODISENT_CLONES void pack_pairs(const Map<BFloat16>& x, int64_t image, int64_t k0, int64_t k1,
                                  int64_t row0, int64_t tile, Pair* out) {
  const BFloat16* from = x.data + image * x.image_stride;
  Pair words[kBlock];
  if (x.pixel_stride == 1) {
    for (int64_t k = k0; k < k1; k += 2)
      for (int64_t p = 0; p < x.pixels; p += kBlock) {
        const BFloat16* low = from + k * x.channel_stride + p;
        const BFloat16* high = low + x.channel_stride;
        const int64_t n = std::min(kBlock, x.pixels - p);
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j)
          words[j].bits = low[j].bits | static_cast<uint32_t>(high[j].bits) << 16;
        spread(words, n, row0 + p, tile, out + k / 2 * kRows);
      }
    return;
  }
  for (int64_t p = 0; p < x.pixels; ++p) {
    const BFloat16* pixel = from + p * x.pixel_stride;
    Pair* to = out + (row0 + p) / kRows * tile + (row0 + p) % kRows;
    for (int64_t k = k0; k < k1; k += 2)
      to[k / 2 * kRows].bits = pixel[k * x.channel_stride].bits |
                               static_cast<uint32_t>(pixel[(k + 1) * x.channel_stride].bits) << 16;
  }
}

}  // namespace

template <typename T>
void pack_image(const Map<T>& x, int64_t image, int64_t k0, int64_t k1, int64_t row0, int64_t tile,
                float* out) {
  do_pack(x, image, k0, k1, row0, tile, out);
}
template void pack_image<float>(const Map<float>&, int64_t, int64_t, int64_t, int64_t, int64_t,
                                float*);
template void pack_image<BFloat16>(const Map<BFloat16>&, int64_t, int64_t, int64_t, int64_t,
                                   int64_t, float*);
template void pack_image<Float16>(const Map<Float16>&, int64_t, int64_t, int64_t, int64_t, int64_t,
                                  float*);

void pack_image(const Map<BFloat16>& x, int64_t image, int64_t k0, int64_t k1, int64_t row0,
                int64_t tile, Pair* out) {
  pack_pairs(x, image, k0, k1, row0, tile, out);
}

}  // namespace infodisent
