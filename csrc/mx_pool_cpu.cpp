#include "mx_pool.h"

#include <algorithm>
#include <limits>

#include "parallel.h"

namespace infodisent {
namespace {

// Channels that are pooled together: values and locations of both sides are then 8 registers of
// AVX-512, or all 16 of AVX2.
constexpr int kChannels = 32;

// `width` channels from c on, of one image. kUnit: channels are neighbours in memory; otherwise
// they are read with a stride, from lines that stay in L1 for all pixels.
template <typename T, bool kUnit, bool kFull>
inline __attribute__((always_inline)) void pool_channels(const T* y, const Map<T>& map, int width,
                                                         typename Wide<T>::type* pos,
                                                         typename Wide<T>::type* neg,
                                                         int32_t* pos_index, int32_t* neg_index) {
  using A = typename Wide<T>::type;
  using I = typename Wide<T>::index;
  const int n = kFull ? kChannels : width;
  const int64_t stride = kUnit ? 1 : map.channel_stride;
  A high[kChannels], low[kChannels];
  I at_high[kChannels], at_low[kChannels], nan[kChannels];
  for (int j = 0; j < n; ++j) {
    high[j] = low[j] = 0;
    at_high[j] = at_low[j] = -1;
    nan[j] = 0;
  }
  for (int64_t p = 0; p < map.pixels; ++p) {
    const T* row = y + p * map.pixel_stride;
    const I here = static_cast<I>(p);
#pragma GCC ivdep
    for (int j = 0; j < n; ++j) {
      const A v = widen(row[j * stride]);
      const bool above = v > high[j], below = v < low[j];
      high[j] = above ? v : high[j];
      at_high[j] = above ? here : at_high[j];
      low[j] = below ? v : low[j];
      at_low[j] = below ? here : at_low[j];
      nan[j] |= v != v ? I(1) : I(0);
    }
  }
  for (int j = 0; j < n; ++j) {
    pos[j] = high[j];
    neg[j] = low[j] == 0 ? A(0) : -low[j];
    pos_index[j] = static_cast<int32_t>(at_high[j]);
    neg_index[j] = static_cast<int32_t>(at_low[j]);
    if (nan[j]) {
      int64_t p = 0;
      while (widen(y[p * map.pixel_stride + j * stride]) ==
             widen(y[p * map.pixel_stride + j * stride]))
        ++p;
      pos[j] = neg[j] = std::numeric_limits<A>::quiet_NaN();
      pos_index[j] = neg_index[j] = static_cast<int32_t>(p);
    }
  }
}

template <typename T>
inline __attribute__((always_inline)) void pool_block(const Map<T>& map, int64_t image, int64_t c,
                                                      typename Wide<T>::type* pos,
                                                      typename Wide<T>::type* neg,
                                                      int32_t* pos_index, int32_t* neg_index) {
  const T* y = map.data + image * map.image_stride + c * map.channel_stride;
  const int width = static_cast<int>(std::min<int64_t>(kChannels, map.channels - c));
  const int64_t at = image * map.channels + c;
  if (map.channel_stride == 1 && width == kChannels)
    pool_channels<T, true, true>(y, map, width, pos + at, neg + at, pos_index + at,
                                 neg_index + at);
  else if (width == kChannels)
    pool_channels<T, false, true>(y, map, width, pos + at, neg + at, pos_index + at,
                                  neg_index + at);
  else
    pool_channels<T, false, false>(y, map, width, pos + at, neg + at, pos_index + at,
                                   neg_index + at);
}

#define BLOCK(T, name)                                                                       \
  INFODISENT_CLONES void name(const Map<T>& map, int64_t image, int64_t c,                   \
                              Wide<T>::type* pos, Wide<T>::type* neg, int32_t* pos_index,    \
                              int32_t* neg_index) {                                          \
    pool_block(map, image, c, pos, neg, pos_index, neg_index);                               \
  }                                                                                          \
  inline void block(const Map<T>& map, int64_t image, int64_t c, Wide<T>::type* pos,         \
                    Wide<T>::type* neg, int32_t* pos_index, int32_t* neg_index) {            \
    name(map, image, c, pos, neg, pos_index, neg_index);                                     \
  }
BLOCK(float, pool_f32)
BLOCK(double, pool_f64)
BLOCK(BFloat16, pool_bf16)
BLOCK(Float16, pool_f16)

}  // namespace

template <typename T>
void mx_pool(const Map<T>& y, typename Wide<T>::type* pos, typename Wide<T>::type* neg,
             int32_t* pos_index, int32_t* neg_index, int threads) {
  const int64_t blocks = (y.channels + kChannels - 1) / kChannels, tasks = y.images * blocks;
  const int team = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  if (tasks == 0) return;
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t)
    block(y, t / blocks, t % blocks * kChannels, pos, neg, pos_index, neg_index);
  (void)team;
}

#define INSTANTIATE(T) \
  template void mx_pool<T>(const Map<T>&, Wide<T>::type*, Wide<T>::type*, int32_t*, int32_t*, int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Float16)

}  // namespace infodisent
