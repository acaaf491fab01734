#include "softmax_alignment.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "buffer.h"
#include "parallel.h"
#include "vectors.h"

namespace infodisent {
namespace {

// As in softmax_pool.cpp.
constexpr int kGroup = 4;
constexpr int64_t kTerms = 32;
constexpr int64_t kTasks = 4;

// Scores of both maps, kCount vectors of each a step: x[(2 i + side) · kCount + k].
template <typename A, int kCount>
struct Tile {
  typename Pack<A>::values* x;
  int64_t steps;
};

// top = max(top, a) and so on over a tile, and the three sums. With lanes over prototypes the
// maxima are made one number before anything is subtracted from them.
template <typename A, int kCount, bool kAcross>
INFODISENT_INLINE void sums(const Tile<A, kCount>& tile, typename Pack<A>::values (*top)[kCount],
                            typename Pack<A>::values (*sum)[kCount]) {
  using V = typename Pack<A>::values;
  for (int side = 0; side < 3; ++side)
    for (int k = 0; k < kCount; ++k) top[side][k] = V{} + kNone<A>;
  for (int64_t i = 0; i < tile.steps; ++i)
    for (int side = 0; side < 2; ++side)
      for (int k = 0; k < kCount; ++k) {
        const V w = tile.x[(2 * i + side) * kCount + k];
        top[side][k] = w > top[side][k] ? w : top[side][k];
      }
  if (!kAcross)
    for (int side = 0; side < 2; ++side)
      for (int k = 0; k < kCount; ++k) spread<A>(top[side][k]);
  for (int64_t i = 0; i < tile.steps; ++i)
    for (int k = 0; k < kCount; ++k) {
      const V w =
          (tile.x[2 * i * kCount + k] - top[0][k]) + (tile.x[(2 * i + 1) * kCount + k] - top[1][k]);
      top[2][k] = w > top[2][k] ? w : top[2][k];
    }
  for (int k = 0; k < kCount; ++k) {
    if (!kAcross) spread<A>(top[2][k]);
    top[2][k] = top[2][k] == kNone<A> ? V{} : top[2][k];
  }
  for (int side = 0; side < 3; ++side)
    for (int k = 0; k < kCount; ++k) sum[side][k] = V{};
  for (int64_t first = 0; first < tile.steps; first += kTerms) {
    V part[3][kCount];
    for (int side = 0; side < 3; ++side)
      for (int k = 0; k < kCount; ++k) part[side][k] = V{};
    for (int64_t i = first; i < std::min(tile.steps, first + kTerms); ++i)
      for (int k = 0; k < kCount; ++k) {
        V u = tile.x[2 * i * kCount + k] - top[0][k];
        V v = tile.x[(2 * i + 1) * kCount + k] - top[1][k];
        V both = u + v - top[2][k];
        exponential(u);
        exponential(v);
        exponential(both);
        part[0][k] += u;
        part[1][k] += v;
        part[2][k] += both;
      }
    for (int side = 0; side < 3; ++side)
      for (int k = 0; k < kCount; ++k) sum[side][k] += part[side][k];
  }
}

template <typename A>
inline A loss_of(A sum_a, A sum_b, A top_both, A sum_both) {
  return (std::log(sum_a) + std::log(sum_b) - std::log(sum_both)) - top_both;
}

template <typename A>
INFODISENT_INLINE void keep(const Alignment<A>& s, int64_t at, const A* top, const A* sum,
                            int64_t stride, A* loss) {
  s.top_a[at] = top[0];
  s.top_b[at] = top[stride];
  s.top_both[at] = top[2 * stride];
  s.sum_a[at] = sum[0];
  s.sum_b[at] = sum[stride];
  s.sum_both[at] = sum[2 * stride];
  loss[at] = loss_of(sum[0], sum[stride], top[2 * stride], sum[2 * stride]);
}

// kCount vectors of pixels from p on, of one image; a lane is a pixel.
template <typename T, int kCount>
INFODISENT_INLINE void pixel_vectors(const Map<T>& a, const Map<T>& b, int64_t image, int64_t p,
                                     int64_t pixels,
                                     typename Pack<typename Wide<T>::type>::values* scratch,
                                     const Alignment<typename Wide<T>::type>& statistics,
                                     typename Wide<T>::type* loss) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  constexpr int64_t kLanes = Pack<A>::lanes;
  for (int side = 0; side < 2; ++side) {
    const Map<T>& map = side == 0 ? a : b;
    const T* from = map.data + image * map.image_stride + p * map.pixel_stride;
    for (int64_t m = 0; m < map.channels; ++m)
      for (int k = 0; k < kCount; ++k) {
        const T* row = from + m * map.channel_stride + k * kLanes * map.pixel_stride;
        __builtin_prefetch(row + kCount * kLanes * map.pixel_stride, 0, 2);
        load(row, map.pixel_stride, pixels - k * kLanes, A(0),
             scratch[(2 * m + side) * kCount + k]);
      }
  }
  V top[3][kCount], sum[3][kCount];
  sums<A, kCount, true>({scratch, a.channels}, top, sum);
  A tops[3][kCount * kLanes], all[3][kCount * kLanes];
  std::memcpy(tops, top, sizeof top);
  std::memcpy(all, sum, sizeof sum);
  for (int64_t j = 0; j < pixels; ++j)
    keep(statistics, image * a.pixels + p + j, &tops[0][j], &all[0][j], kCount * kLanes, loss);
}

// One pixel; a lane is a prototype.
template <typename T>
INFODISENT_INLINE void one_pixel(const Map<T>& a, const Map<T>& b, int64_t image, int64_t p,
                                 typename Pack<typename Wide<T>::type>::values* scratch,
                                 const Alignment<typename Wide<T>::type>& statistics,
                                 typename Wide<T>::type* loss) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const int64_t vectors = (a.channels + kLanes - 1) / kLanes;
  for (int side = 0; side < 2; ++side) {
    const Map<T>& map = side == 0 ? a : b;
    const T* from = map.data + image * map.image_stride + p * map.pixel_stride;
    for (int64_t v = 0; v < vectors; ++v)
      load(from + v * kLanes * map.channel_stride, map.channel_stride, map.channels - v * kLanes,
           kNone<A>, scratch[2 * v + side]);
  }
  V top[3][1], sum[3][1];
  sums<A, 1, false>({scratch, vectors}, top, sum);
  A tops[3], all[3];
  for (int side = 0; side < 3; ++side) {
    tops[side] = top[side][0][0];
    all[side] = total<A>(sum[side][0]);
  }
  keep(statistics, image * a.pixels + p, tops, all, 1, loss);
}

template <typename T>
INFODISENT_INLINE void align_range(const Map<T>& a, const Map<T>& b, int64_t image, int64_t p0,
                                   int64_t p1,
                                   typename Pack<typename Wide<T>::type>::values* scratch,
                                   const Alignment<typename Wide<T>::type>& statistics,
                                   typename Wide<T>::type* loss) {
  constexpr int64_t kLanes = Pack<typename Wide<T>::type>::lanes;
  int64_t p = p0;
  if (a.pixel_stride == 1 && a.channel_stride != 1) {
    for (; p + kGroup * kLanes <= p1; p += kGroup * kLanes)
      pixel_vectors<T, kGroup>(a, b, image, p, kGroup * kLanes, scratch, statistics, loss);
    for (; p < p1; p += kLanes)
      pixel_vectors<T, 1>(a, b, image, p, std::min(kLanes, p1 - p), scratch, statistics, loss);
  }
  for (; p < p1; ++p) one_pixel(a, b, image, p, scratch, statistics, loss);
}

// A line of an image: the pixels of one channel (kAcross) or the channels of one pixel.
template <typename E>
struct Line {
  E* data;
  int64_t stride;
};
template <typename T>
INFODISENT_INLINE Line<const T> line(const Map<T>& x, int64_t image, bool across, int64_t i) {
  const T* from = x.data + image * x.image_stride;
  if (across) return {from + i * x.channel_stride, x.pixel_stride};
  return {from + i * x.pixel_stride, x.channel_stride};
}
template <typename A>
INFODISENT_INLINE Line<A> line(const Target<A>& x, int64_t image, bool across, int64_t i) {
  A* to = x.data + image * x.image_stride;
  if (across) return {to + i * x.channel_stride, x.pixel_stride};
  return {to + i * x.pixel_stride, x.channel_stride};
}

// What the gradient needs of each pixel of one image: maxima, and grad over each of the sums.
template <typename A>
struct Factors {
  const A *top_a, *top_b, *top_both, *a, *b, *both;
};

template <typename T, bool kAcross>
INFODISENT_INLINE void grad_lines(const Map<T>& a, const Map<T>& b, int64_t image, int64_t first,
                                  int64_t last, const Factors<typename Wide<T>::type>& factors,
                                  const Target<typename Wide<T>::type>& da,
                                  const Target<typename Wide<T>::type>& db) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const int64_t length = kAcross ? a.pixels : a.channels;
  const A* each[] = {factors.top_a, factors.top_b, factors.top_both,
                     factors.a,     factors.b,     factors.both};
  for (int64_t i = first; i < last; ++i) {
    const auto x = line(a, image, kAcross, i), y = line(b, image, kAcross, i);
    const auto dx = line(da, image, kAcross, i), dy = line(db, image, kAcross, i);
    V f[6];
    if (!kAcross)
      for (int k = 0; k < 6; ++k) f[k] = V{} + each[k][i];
    for (int64_t j = 0; j < length; j += kLanes) {
      const int64_t count = length - j;
      if (kAcross)
        for (int k = 0; k < 6; ++k) load(each[k] + j, 1, count, A(0), f[k]);
      V u, v;
      load(x.data + j * x.stride, x.stride, count, A(0), u);
      load(y.data + j * y.stride, y.stride, count, A(0), v);
      u -= f[0];
      v -= f[1];
      V both = u + v - f[2];
      exponential(both);
      both *= f[5];
      if (da.data != nullptr) {
        exponential(u);
        u = u * f[3] - both;
        store<A>(u, dx.data + j * dx.stride, dx.stride, count);
      }
      if (db.data != nullptr) {
        exponential(v);
        v = v * f[4] - both;
        store<A>(v, dy.data + j * dy.stride, dy.stride, count);
      }
    }
  }
}

#define RANGES(T, suffix)                                                                        \
  INFODISENT_CLONES void align_##suffix(                                                         \
      const Map<T>& a, const Map<T>& b, int64_t image, int64_t p0, int64_t p1,                   \
      Pack<Wide<T>::type>::values* scratch, const Alignment<Wide<T>::type>& statistics,          \
      Wide<T>::type* loss) {                                                                     \
    align_range<T>(a, b, image, p0, p1, scratch, statistics, loss);                              \
  }                                                                                              \
  INFODISENT_CLONES void align_grad_##suffix(                                                    \
      const Map<T>& a, const Map<T>& b, int64_t image, bool across, int64_t first, int64_t last, \
      const Factors<Wide<T>::type>& factors, const Target<Wide<T>::type>& da,                    \
      const Target<Wide<T>::type>& db) {                                                         \
    if (across)                                                                                  \
      grad_lines<T, true>(a, b, image, first, last, factors, da, db);                            \
    else                                                                                         \
      grad_lines<T, false>(a, b, image, first, last, factors, da, db);                           \
  }                                                                                              \
  template <>                                                                                    \
  struct Ranges<T> {                                                                             \
    static constexpr auto align = align_##suffix;                                                \
    static constexpr auto grad = align_grad_##suffix;                                            \
  };
template <typename T>
struct Ranges;
RANGES(float, f32)
RANGES(double, f64)
RANGES(BFloat16, bf16)
RANGES(Float16, f16)

}  // namespace

template <typename T>
void softmax_alignment(const Map<T>& a, const Map<T>& b, typename Wide<T>::type* loss,
                       const Alignment<typename Wide<T>::type>& statistics, int threads) {
  using A = typename Wide<T>::type;
  if (a.images == 0) return;
  threads = std::max(threads, 1);
  const int64_t block = kGroup * Pack<A>::lanes, blocks = (a.pixels + block - 1) / block;
  const int64_t parts = std::min(blocks, std::max<int64_t>(1, kTasks * threads / a.images));
  const int64_t tasks = a.images * parts, step = (blocks + parts - 1) / parts * block;
  const int team = static_cast<int>(std::min<int64_t>(threads, tasks));
  const int64_t size = 2 * kGroup * a.channels;
  const auto scratch = buffer<typename Pack<A>::values>(team * size);
#pragma omp parallel for num_threads(team) schedule(dynamic) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t p0 = std::min(a.pixels, t % parts * step);
    Ranges<T>::align(a, b, t / parts, p0, std::min(a.pixels, p0 + step),
                     scratch.get() + thread_number() * size, statistics, loss);
  }
}

template <typename T>
void softmax_alignment_backward(const Map<T>& a, const Map<T>& b,
                                const typename Wide<T>::type* grad,
                                const Alignment<const typename Wide<T>::type>& s,
                                const Target<typename Wide<T>::type>& da,
                                const Target<typename Wide<T>::type>& db, int threads) {
  using A = typename Wide<T>::type;
  if (a.images == 0) return;
  const Target<A>& written = da.data != nullptr ? da : db;
  const bool across = written.pixel_stride == 1 && written.channel_stride != 1;
  const int64_t rows = across ? a.channels : a.pixels, size = a.images * a.pixels;
  const int64_t parts = std::min(rows, std::max<int64_t>(1, kTasks * threads / a.images));
  const int64_t tasks = a.images * parts, step = (rows + parts - 1) / parts;
  const int team = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  prepare(da, a.images, a.pixels, a.channels);
  prepare(db, a.images, a.pixels, a.channels);
  const auto factors = buffer<A>(3 * size);
  A* f = factors.get();
  for (int64_t i = 0; i < size; ++i) {
    f[i] = grad[i] / s.sum_a[i];
    f[size + i] = grad[i] / s.sum_b[i];
    f[2 * size + i] = grad[i] / s.sum_both[i];
  }
#pragma omp parallel for num_threads(team) schedule(dynamic) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t i = t / parts, at = i * a.pixels, first = std::min(rows, t % parts * step);
    Ranges<T>::grad(
        a, b, i, across, first, std::min(rows, first + step),
        {s.top_a + at, s.top_b + at, s.top_both + at, f + at, f + size + at, f + 2 * size + at}, da,
        db);
  }
  (void)team;
}

#define INSTANTIATE(T)                                                                           \
  template void softmax_alignment<T>(const Map<T>&, const Map<T>&, Wide<T>::type*,               \
                                     const Alignment<Wide<T>::type>&, int);                      \
  template void softmax_alignment_backward<T>(                                                   \
      const Map<T>&, const Map<T>&, const Wide<T>::type*, const Alignment<const Wide<T>::type>&, \
      const Target<Wide<T>::type>&, const Target<Wide<T>::type>&, int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Float16)

}  // namespace infodisent
