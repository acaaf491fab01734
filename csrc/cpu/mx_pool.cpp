#include "mx_pool.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "parallel.h"

namespace infodisent {
namespace {

// Channels of one task.
constexpr int64_t kBlock = 256;
// Rows ahead that are fetched: neighbouring rows lie C numbers apart, too far for the hardware.
constexpr int64_t kAhead = 6;

// A vector of 64 bytes, whatever the machine's own width, and the integers that go with it. The
// compiler splits it where registers are shorter.
template <typename A>
struct Vector;
template <>
struct Vector<float> {
  typedef float value __attribute__((vector_size(64)));
  typedef int32_t index __attribute__((vector_size(64)));
  static constexpr int lanes = 16;
};
template <>
struct Vector<double> {
  typedef double value __attribute__((vector_size(64)));
  typedef int64_t index __attribute__((vector_size(64)));
  static constexpr int lanes = 8;
};

// The first pixel of a channel that is NaN; there is one.
template <typename T>
inline int32_t first_nan(const T* y, int64_t stride) {
  int64_t p = 0;
  while (widen(y[p * stride]) == widen(y[p * stride])) ++p;
  return static_cast<int32_t>(p);
}

// kVectors vectors of neighbouring channels of one image, all in registers. kUnit: the channels are
// neighbours in memory too; otherwise they are gathered, from lines that stay in L1 for all pixels.
template <typename T, int kVectors, bool kUnit>
INFODISENT_INLINE void pool_vectors(const T* y, const Map<T>& map, typename Wide<T>::type* pos,
                                    typename Wide<T>::type* neg, int32_t* pos_index,
                                    int32_t* neg_index) {
  using A = typename Wide<T>::type;
  using V = typename Vector<A>::value;
  using I = typename Vector<A>::index;
  constexpr int kLanes = Vector<A>::lanes;
  V high[kVectors], low[kVectors];
  I at_high[kVectors], at_low[kVectors], nan[kVectors];
  for (int k = 0; k < kVectors; ++k) {
    high[k] = low[k] = V{};
    at_high[k] = at_low[k] = I{} - 1;
    nan[k] = I{};
  }
  for (int64_t p = 0; p < map.pixels; ++p) {
    const T* row = y + p * map.pixel_stride;
    const I here = I{} + static_cast<typename Wide<T>::index>(p);
    for (int k = 0; k < kVectors; ++k) {
      A values[kLanes];
      const T* from = row + k * kLanes * (kUnit ? 1 : map.channel_stride);
      if (kUnit) __builtin_prefetch(from + kAhead * map.pixel_stride);
      for (int j = 0; j < kLanes; ++j) values[j] = widen(from[kUnit ? j : j * map.channel_stride]);
      V v;
      std::memcpy(&v, values, sizeof v);
      const I above = v > high[k], below = v < low[k];
      high[k] = above ? v : high[k];
      at_high[k] = above ? here : at_high[k];
      low[k] = below ? v : low[k];
      at_low[k] = below ? here : at_low[k];
      nan[k] |= v != v;
    }
  }
  I any = nan[0];
  for (int k = 0; k < kVectors; ++k) {
    any |= nan[k];
    const V negative = low[k] < 0 ? -low[k] : V{};  // no negative zero
    std::memcpy(pos + k * kLanes, &high[k], sizeof(V));
    std::memcpy(neg + k * kLanes, &negative, sizeof(V));
    for (int j = 0; j < kLanes; ++j) {
      pos_index[k * kLanes + j] = static_cast<int32_t>(at_high[k][j]);
      neg_index[k * kLanes + j] = static_cast<int32_t>(at_low[k][j]);
    }
  }
  bool some = false;
  for (int j = 0; j < kLanes; ++j) some |= any[j] != 0;
  if (!some) return;
  for (int c = 0; c < kVectors * kLanes; ++c)
    if (nan[c / kLanes][c % kLanes]) {
      pos[c] = neg[c] = std::numeric_limits<A>::quiet_NaN();
      pos_index[c] = neg_index[c] = first_nan(y + c * map.channel_stride, map.pixel_stride);
    }
}

// One channel: what is left beside whole vectors.
template <typename T>
inline void pool_channel(const T* y, const Map<T>& map, typename Wide<T>::type* pos,
                         typename Wide<T>::type* neg, int32_t* pos_index, int32_t* neg_index) {
  using A = typename Wide<T>::type;
  A high = 0, low = 0;
  int32_t at_high = -1, at_low = -1;
  for (int64_t p = 0; p < map.pixels; ++p) {
    const A v = widen(y[p * map.pixel_stride]);
    if (v != v) {
      *pos = *neg = std::numeric_limits<A>::quiet_NaN();
      *pos_index = *neg_index = static_cast<int32_t>(p);
      return;
    }
    if (v > high) high = v, at_high = static_cast<int32_t>(p);
    if (v < low) low = v, at_low = static_cast<int32_t>(p);
  }
  *pos = high;
  *neg = low < 0 ? -low : A(0);
  *pos_index = at_high;
  *neg_index = at_low;
}

// Up to kBlock channels from c on, of one image.
template <typename T, bool kUnit>
INFODISENT_INLINE void pool_block(const Map<T>& map, int64_t image, int64_t c,
                                  typename Wide<T>::type* pos, typename Wide<T>::type* neg,
                                  int32_t* pos_index, int32_t* neg_index) {
  constexpr int kLanes = Vector<typename Wide<T>::type>::lanes;
  const int64_t end = std::min(map.channels, c + kBlock);
  const auto at = [&](int64_t i) {
    return map.data + image * map.image_stride + i * map.channel_stride;
  };
  const int64_t o = image * map.channels;
  for (; c + 4 * kLanes <= end; c += 4 * kLanes)
    pool_vectors<T, 4, kUnit>(at(c), map, pos + o + c, neg + o + c, pos_index + o + c,
                              neg_index + o + c);
  for (; c + kLanes <= end; c += kLanes)
    pool_vectors<T, 1, kUnit>(at(c), map, pos + o + c, neg + o + c, pos_index + o + c,
                              neg_index + o + c);
  for (; c < end; ++c)
    pool_channel(at(c), map, pos + o + c, neg + o + c, pos_index + o + c, neg_index + o + c);
}

#define BLOCK(T, name)                                                                         \
  INFODISENT_CLONES void name(const Map<T>& map, int64_t image, int64_t c, Wide<T>::type* pos, \
                              Wide<T>::type* neg, int32_t* pos_index, int32_t* neg_index) {    \
    if (map.channel_stride == 1)                                                               \
      pool_block<T, true>(map, image, c, pos, neg, pos_index, neg_index);                      \
    else                                                                                       \
      pool_block<T, false>(map, image, c, pos, neg, pos_index, neg_index);                     \
  }                                                                                            \
  inline void block(const Map<T>& map, int64_t image, int64_t c, Wide<T>::type* pos,           \
                    Wide<T>::type* neg, int32_t* pos_index, int32_t* neg_index) {              \
    name(map, image, c, pos, neg, pos_index, neg_index);                                       \
  }
BLOCK(float, pool_f32)
BLOCK(double, pool_f64)
BLOCK(BFloat16, pool_bf16)
BLOCK(Float16, pool_f16)

}  // namespace

template <typename T>
void mx_pool(const Map<T>& y, typename Wide<T>::type* pos, typename Wide<T>::type* neg,
             int32_t* pos_index, int32_t* neg_index, int threads) {
  const int64_t blocks = (y.channels + kBlock - 1) / kBlock, tasks = y.images * blocks;
  const int team = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  if (tasks == 0) return;
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t)
    block(y, t / blocks, t % blocks * kBlock, pos, neg, pos_index, neg_index);
  (void)team;
}

#define INSTANTIATE(T) \
  template void mx_pool<T>(const Map<T>&, Wide<T>::type*, Wide<T>::type*, int32_t*, int32_t*, int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Float16)

}  // namespace infodisent
