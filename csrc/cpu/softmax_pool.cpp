#include "softmax_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "buffer.h"
#include "parallel.h"
#include "vectors.h"

namespace infodisent {
namespace {

// Vectors of neighbouring pixels that are worked on together where pixels are neighbours in memory.
constexpr int kGroup = 4;
// Terms that are summed up before they join the sum: an error of 32 + M/32 roundings and not of M.
constexpr int64_t kTerms = 32;
// Tasks a thread, so that threads end together.
constexpr int64_t kTasks = 4;

// What a task knows so far: per prototype `lanes` candidates, (w - top) / T - log(sum) and pixel.
template <typename A>
struct Best {
  typename Pack<A>::values* score;  // [M] with lanes over pixels, [M / lanes] over prototypes
  typename Pack<A>::integers* pixel;
};

// kCount vectors of pixels from p on, of one image; a lane is a pixel. `tile` holds their scores.
template <typename T, int kCount>
INFODISENT_INLINE void pixel_vectors(const Scores<T>& s, int64_t image, int64_t p, int64_t pixels,
                                     typename Pack<typename Wide<T>::type>::values* tile,
                                     const Best<typename Wide<T>::type>& best,
                                     typename Wide<T>::type* top, typename Wide<T>::type* sum) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  using I = typename Pack<A>::integers;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const int64_t channels = s.x.channels;
  const T* from = s.x.data + image * s.x.image_stride + p * s.x.pixel_stride;
  V high[kCount], sums[kCount], shift[kCount];
  I here[kCount];
  for (int k = 0; k < kCount; ++k) high[k] = V{} + kNone<A>;
  for (int64_t m = 0; m < channels; ++m) {
    const T* row = from + m * s.x.channel_stride;
    const A b = s.bias == nullptr ? A(0) : s.bias[m];
    for (int k = 0; k < kCount; ++k) {
      // the next pixels of this channel: too short a run for the hardware to fetch ahead
      __builtin_prefetch(row + (kCount + k) * kLanes, 0, 2);
      V w;
      load(row + k * kLanes, 1, pixels - k * kLanes, A(0), w);
      w += b;
      tile[m * kCount + k] = w;
      high[k] = w > high[k] ? w : high[k];
    }
  }
  for (int k = 0; k < kCount; ++k) sums[k] = V{};
  for (int64_t first = 0; first < channels; first += kTerms) {
    V part[kCount];
    for (int k = 0; k < kCount; ++k) part[k] = V{};
    for (int64_t m = first; m < std::min(channels, first + kTerms); ++m)
      for (int k = 0; k < kCount; ++k) {
        V e = (tile[m * kCount + k] - high[k]) * s.inverse;
        exponential(e);
        part[k] += e;
      }
    for (int k = 0; k < kCount; ++k) sums[k] += part[k];
  }
  for (int k = 0; k < kCount; ++k) {
    store<A>(high[k], top + p + k * kLanes, 1, pixels - k * kLanes);
    store<A>(sums[k], sum + p + k * kLanes, 1, pixels - k * kLanes);
    for (int64_t j = 0; j < kLanes; ++j) {
      const int64_t at = k * kLanes + j;
      // NaN: such a pixel never wins
      const bool counts =
          at < pixels && (s.valid == nullptr || s.valid[image * s.x.pixels + p + at] != 0);
      shift[k][j] = counts ? std::log(sums[k][j]) : std::numeric_limits<A>::quiet_NaN();
      here[k][j] = static_cast<typename Wide<T>::index>(p + at);
    }
  }
  for (int64_t m = 0; m < channels; ++m) {
    V score = best.score[m];
    I pixel = best.pixel[m];
    for (int k = 0; k < kCount; ++k) {
      const V d = (tile[m * kCount + k] - high[k]) * s.inverse - shift[k];
      const I above = d > score;
      score = above ? d : score;
      pixel = above ? here[k] : pixel;
    }
    best.score[m] = score;
    best.pixel[m] = pixel;
  }
}

// One pixel; a lane is a prototype. `row` holds its scores, -Inf behind the last.
template <typename T>
INFODISENT_INLINE void one_pixel(const Scores<T>& s, int64_t image, int64_t p,
                                 typename Pack<typename Wide<T>::type>::values* row,
                                 const Best<typename Wide<T>::type>& best,
                                 typename Wide<T>::type* top, typename Wide<T>::type* sum) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  using I = typename Pack<A>::integers;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const int64_t channels = s.x.channels, stride = s.x.channel_stride;
  const int64_t vectors = (channels + kLanes - 1) / kLanes;
  const T* from = s.x.data + image * s.x.image_stride + p * s.x.pixel_stride;
  V high = V{} + kNone<A>, sums = V{};
  for (int64_t v = 0; v < vectors; ++v) {
    V w;
    load(from + v * kLanes * stride, stride, channels - v * kLanes, kNone<A>, w);
    if (s.bias != nullptr) {
      V b;
      load(s.bias + v * kLanes, 1, channels - v * kLanes, A(0), b);
      w += b;
    }
    row[v] = w;
    high = w > high ? w : high;
  }
  spread<A>(high);
  for (int64_t first = 0; first < vectors; first += kTerms) {
    V part = V{};
    for (int64_t v = first; v < std::min(vectors, first + kTerms); ++v) {
      V e = (row[v] - high) * s.inverse;
      exponential(e);
      part += e;
    }
    sums += part;
  }
  const A all = total<A>(sums);
  top[p] = high[0];
  sum[p] = all;
  if (s.valid != nullptr && s.valid[image * s.x.pixels + p] == 0) return;
  const A shift = std::log(all);
  const I here = I{} + static_cast<typename Wide<T>::index>(p);
  for (int64_t v = 0; v < vectors; ++v) {
    const V d = (row[v] - high) * s.inverse - shift;
    const I above = d > best.score[v];
    best.score[v] = above ? d : best.score[v];
    best.pixel[v] = above ? here : best.pixel[v];
  }
}

template <typename A>
constexpr bool lower(A score, int32_t pixel, A other, int32_t other_pixel) {
  return score < other || (score == other && pixel > other_pixel);
}

// Pixels p0 .. p1 of one image: the best score of every prototype and its pixel, -Inf if none.
template <typename T>
INFODISENT_INLINE void pool_range(const Scores<T>& s, int64_t image, int64_t p0, int64_t p1,
                                  typename Pack<typename Wide<T>::type>::values* scratch,
                                  const Best<typename Wide<T>::type>& best,
                                  typename Wide<T>::type* top, typename Wide<T>::type* sum,
                                  typename Wide<T>::type* score, int32_t* pixel) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  using I = typename Pack<A>::integers;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const int64_t channels = s.x.channels;
  const bool across = s.x.pixel_stride == 1 && s.x.channel_stride != 1;  // lanes are pixels
  for (int64_t i = 0; i < (across ? channels : (channels + kLanes - 1) / kLanes); ++i) {
    best.score[i] = V{} + kNone<A>;
    best.pixel[i] = I{};
  }
  if (!across) {
    for (int64_t p = p0; p < p1; ++p) one_pixel(s, image, p, scratch, best, top, sum);
    for (int64_t m = 0; m < channels; ++m) {
      score[m] = best.score[m / kLanes][m % kLanes];
      pixel[m] = static_cast<int32_t>(best.pixel[m / kLanes][m % kLanes]);
    }
    return;
  }
  int64_t p = p0;
  for (; p + kGroup * kLanes <= p1; p += kGroup * kLanes)
    pixel_vectors<T, kGroup>(s, image, p, kGroup * kLanes, scratch, best, top, sum);
  for (; p < p1; p += kLanes)
    pixel_vectors<T, 1>(s, image, p, std::min(kLanes, p1 - p), scratch, best, top, sum);
  for (int64_t m = 0; m < channels; ++m) {
    score[m] = kNone<A>;
    pixel[m] = 0;
    for (int64_t j = 0; j < kLanes; ++j) {
      const A other = best.score[m][j];
      const int32_t at = static_cast<int32_t>(best.pixel[m][j]);
      if (lower(score[m], pixel[m], other, at)) score[m] = other, pixel[m] = at;
    }
  }
}

// e += what is there.
template <typename A>
INFODISENT_INLINE void join(const A* there, int64_t stride, int64_t count,
                            typename Pack<A>::values& e) {
  typename Pack<A>::values before;
  load(there, stride, count, A(0), before);
  e += before;
}

// Gradient of one channel (lanes are pixels): s_mp times minus G_p / (sum_p T).
template <typename T, bool kAdd>
INFODISENT_INLINE void grad_channel(const Scores<T>& s, int64_t image, int64_t m,
                                    const typename Wide<T>::type* top,
                                    const typename Wide<T>::type* factor,
                                    const Target<typename Wide<T>::type>& dx) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const T* from = s.x.data + image * s.x.image_stride + m * s.x.channel_stride;
  A* to = dx.data + image * dx.image_stride + m * dx.channel_stride;
  const A b = s.bias == nullptr ? A(0) : s.bias[m];
  for (int64_t p = 0; p < s.x.pixels; p += kLanes) {
    const int64_t count = s.x.pixels - p;
    V w, t, f;
    load(from + p * s.x.pixel_stride, s.x.pixel_stride, count, A(0), w);
    load(top + p, 1, count, A(0), t);
    load(factor + p, 1, count, A(0), f);
    V e = (w + b - t) * s.inverse;
    exponential(e);
    e = f != 0 ? e * f : V{};  // a NaN of a pixel that is nobody's is not shown
    if (kAdd) join<A>(to + p * dx.pixel_stride, dx.pixel_stride, count, e);
    store<A>(e, to + p * dx.pixel_stride, dx.pixel_stride, count);
  }
}

// The same at one pixel; lanes are prototypes.
template <typename T, bool kAdd>
INFODISENT_INLINE void grad_pixel(const Scores<T>& s, int64_t image, int64_t p,
                                  typename Wide<T>::type top, typename Wide<T>::type factor,
                                  const Target<typename Wide<T>::type>& dx) {
  using A = typename Wide<T>::type;
  using V = typename Pack<A>::values;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const int64_t stride = s.x.channel_stride;
  const T* from = s.x.data + image * s.x.image_stride + p * s.x.pixel_stride;
  A* to = dx.data + image * dx.image_stride + p * dx.pixel_stride;
  if (kAdd && factor == 0) return;
  for (int64_t m = 0; m < s.x.channels; m += kLanes) {
    const int64_t count = s.x.channels - m;
    V e = V{};
    if (factor != 0) {
      load(from + m * stride, stride, count, A(0), e);
      if (s.bias != nullptr) {
        V b;
        load(s.bias + m, 1, count, A(0), b);
        e += b;
      }
      e = (e - top) * s.inverse;
      exponential(e);
      e *= factor;
    }
    if (kAdd) join<A>(to + m * dx.channel_stride, dx.channel_stride, count, e);
    store<A>(e, to + m * dx.channel_stride, dx.channel_stride, count);
  }
}

// What one image's part of the gradient is made of.
template <typename A>
struct Gradient {
  const A *grad, *value;     // [M]
  const int32_t* index;      // [M]
  const A* top;              // [P]
  const A *common, *factor;  // [P]: G_p, and minus G_p / (sum_p T)
};

// Rows `first` .. `last` of the gradient of one image: channels where pixels are neighbours in
// memory, else pixels. Then what the pool itself adds, written over what is there.
template <typename T, bool kAdd>
INFODISENT_INLINE void grad_range(const Scores<T>& s, int64_t image, bool across, int64_t first,
                                  int64_t last, const Gradient<typename Wide<T>::type>& g,
                                  const Target<typename Wide<T>::type>& dx,
                                  typename Wide<T>::type* before /* [M] */) {
  using A = typename Wide<T>::type;
  const auto winner = [&](int64_t m) -> A* {
    const int64_t p = g.index[m], row = across ? m : p;
    if (row < first || row >= last || g.value[m] == kNone<A>) return nullptr;
    return dx.data + image * dx.image_stride + p * dx.pixel_stride + m * dx.channel_stride;
  };
  if (kAdd)
    for (int64_t m = 0; m < s.x.channels; ++m)
      if (const A* to = winner(m)) before[m] = *to;
  for (int64_t i = first; i < last; ++i) {
    if (across)
      grad_channel<T, kAdd>(s, image, i, g.top, g.factor, dx);
    else
      grad_pixel<T, kAdd>(s, image, i, g.top[i], g.factor[i], dx);
  }
  for (int64_t m = 0; m < s.x.channels; ++m)
    if (A* to = winner(m)) {
      *to = g.value[m] * (g.grad[m] - g.common[g.index[m]]) * s.inverse;
      if (kAdd) *to += before[m];
    }
}

#define RANGES(T, suffix)                                                                          \
  INFODISENT_CLONES void pool_##suffix(const Scores<T>& s, int64_t image, int64_t p0, int64_t p1,  \
                                       Pack<Wide<T>::type>::values* scratch,                       \
                                       const Best<Wide<T>::type>& best, Wide<T>::type* top,        \
                                       Wide<T>::type* sum, Wide<T>::type* score, int32_t* pixel) { \
    pool_range<T>(s, image, p0, p1, scratch, best, top, sum, score, pixel);                        \
  }                                                                                                \
  INFODISENT_CLONES void grad_##suffix(                                                            \
      const Scores<T>& s, int64_t image, bool across, int64_t first, int64_t last,                 \
      const Gradient<Wide<T>::type>& g, const Target<Wide<T>::type>& dx, Wide<T>::type* before) {  \
    if (before != nullptr)                                                                         \
      grad_range<T, true>(s, image, across, first, last, g, dx, before);                           \
    else                                                                                           \
      grad_range<T, false>(s, image, across, first, last, g, dx, before);                          \
  }                                                                                                \
  template <>                                                                                      \
  struct Ranges<T> {                                                                               \
    static constexpr auto pool = pool_##suffix;                                                    \
    static constexpr auto grad = grad_##suffix;                                                    \
  };
template <typename T>
struct Ranges;
RANGES(float, f32)
RANGES(double, f64)
RANGES(BFloat16, bf16)
RANGES(Float16, f16)

// What an image's tasks found, put together; the values themselves from the winners' scores.
template <typename T>
void finish(const Scores<T>& s, int64_t image, int64_t parts, const typename Wide<T>::type* score,
            const int32_t* pixel, typename Wide<T>::type* value, int32_t* index,
            const typename Wide<T>::type* top, const typename Wide<T>::type* sum) {
  using A = typename Wide<T>::type;
  const int64_t channels = s.x.channels;
  const uint8_t* valid = s.valid == nullptr ? nullptr : s.valid + image * s.x.pixels;
  int64_t first = -1, undefined = -1;
  for (int64_t p = s.x.pixels - 1; p >= 0; --p) {
    if (valid != nullptr && valid[p] == 0) continue;
    first = p;
    if (sum[p] != sum[p]) undefined = p;
  }
  for (int64_t m = 0; m < channels; ++m) {
    A best = kNone<A>;
    int32_t at = static_cast<int32_t>(std::max<int64_t>(first, 0));  // all of them -Inf
    for (int64_t i = 0; i < parts; ++i)
      if (score[i * channels + m] > best)
        best = score[i * channels + m], at = pixel[i * channels + m];
    if (undefined >= 0) at = static_cast<int32_t>(undefined);
    const A w =
        widen(s.x.data[image * s.x.image_stride + at * s.x.pixel_stride + m * s.x.channel_stride]) +
        (s.bias == nullptr ? A(0) : s.bias[m]);
    index[m] = at;
    value[m] = undefined >= 0 ? std::numeric_limits<A>::quiet_NaN()
               : first < 0    ? kNone<A>
                              : std::exp((w - top[at]) * s.inverse) / sum[at];
  }
}

}  // namespace

template <typename T>
void softmax_pool(const Scores<T>& s, typename Wide<T>::type* value, int32_t* index,
                  typename Wide<T>::type* top, typename Wide<T>::type* sum, int threads) {
  using A = typename Wide<T>::type;
  constexpr int64_t kLanes = Pack<A>::lanes;
  const int64_t images = s.x.images, pixels = s.x.pixels, channels = s.x.channels;
  if (images == 0) return;
  threads = std::max(threads, 1);
  const int64_t blocks = (pixels + kGroup * kLanes - 1) / (kGroup * kLanes);
  const int64_t parts =
      threads == 1 ? 1 : std::min(blocks, std::max<int64_t>(1, kTasks * threads / images));
  const int64_t tasks = images * parts;
  const int team = static_cast<int>(std::min<int64_t>(threads, tasks));
  const int64_t step = (blocks + parts - 1) / parts * kGroup * kLanes;
  const auto scratch = buffer<typename Pack<A>::values>(team * channels * kGroup);
  const auto scores = buffer<typename Pack<A>::values>(team * channels);
  const auto places = buffer<typename Pack<A>::integers>(team * channels);
  const auto score = buffer<A>(tasks * channels);
  const auto pixel = buffer<int32_t>(tasks * channels);
#pragma omp parallel for num_threads(team) schedule(dynamic) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t image = t / parts, p0 = std::min(pixels, t % parts * step);
    const int64_t own = thread_number() * channels;
    Ranges<T>::pool(s, image, p0, std::min(pixels, p0 + step), scratch.get() + own * kGroup,
                    {scores.get() + own, places.get() + own}, top + image * pixels,
                    sum + image * pixels, score.get() + t * channels, pixel.get() + t * channels);
  }
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t i = 0; i < images; ++i)
    finish(s, i, parts, score.get() + i * parts * channels, pixel.get() + i * parts * channels,
           value + i * channels, index + i * channels, top + i * pixels, sum + i * pixels);
}

template <typename T>
void softmax_pool_backward(const Scores<T>& s, const typename Wide<T>::type* grad,
                           const typename Wide<T>::type* value, const int32_t* index,
                           const typename Wide<T>::type* top, const typename Wide<T>::type* sum,
                           const Target<typename Wide<T>::type>& dx, bool add, int threads) {
  using A = typename Wide<T>::type;
  const int64_t images = s.x.images, pixels = s.x.pixels, channels = s.x.channels;
  if (images == 0) return;
  const bool across = dx.pixel_stride == 1 && dx.channel_stride != 1;
  const int64_t rows = across ? channels : pixels;
  const int64_t parts =
      threads <= 1 ? 1 : std::min(rows, std::max<int64_t>(1, kTasks * threads / images));
  const int64_t tasks = images * parts, step = (rows + parts - 1) / parts;
  const int team = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  prepare(dx, images, pixels, channels);
  const auto common = buffer<A>(images * pixels), factor = buffer<A>(images * pixels);
  const auto before = buffer<A>(add ? team * channels : 0);
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t i = 0; i < images; ++i) {
    A* own = common.get() + i * pixels;
    std::fill_n(own, pixels, A(0));
    for (int64_t k = i * channels; k < (i + 1) * channels; ++k)
      if (value[k] != kNone<A>) own[index[k]] += grad[k] * value[k];
    for (int64_t p = 0; p < pixels; ++p)
      factor[i * pixels + p] = own[p] == 0 ? A(0) : -own[p] / sum[i * pixels + p] * s.inverse;
  }
#pragma omp parallel for num_threads(team) schedule(dynamic) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t i = t / parts, first = std::min(rows, t % parts * step);
    Ranges<T>::grad(s, i, across, first, std::min(rows, first + step),
                    {grad + i * channels, value + i * channels, index + i * channels,
                     top + i * pixels, common.get() + i * pixels, factor.get() + i * pixels},
                    dx, add ? before.get() + thread_number() * channels : nullptr);
  }
  (void)team;
}

#define INSTANTIATE(T)                                                                      \
  template void softmax_pool<T>(const Scores<T>&, Wide<T>::type*, int32_t*, Wide<T>::type*, \
                                Wide<T>::type*, int);                                       \
  template void softmax_pool_backward<T>(                                                   \
      const Scores<T>&, const Wide<T>::type*, const Wide<T>::type*, const int32_t*,         \
      const Wide<T>::type*, const Wide<T>::type*, const Target<Wide<T>::type>&, bool, int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Float16)

}  // namespace infodisent
