#include <algorithm>
#include <cstring>
#include <type_traits>

#include "half_rows.h"
#include "parallel.h"
#include "rotate_pool.h"
#include "transpose.h"

namespace infodisent {
namespace {

// Columns that are summed together; a row of them is 1 KiB of float.
constexpr int64_t kStrip = 256;
// Part of x that one pass over the channels of a thread reads again and again: half of a 1 MiB L2.
constexpr int64_t kGroupBytes = 512 << 10;
// Channels of a transposed block: their pixels stay in L1 until all are written.
constexpr int64_t kRows = kSquare;

template <typename T>
INFODISENT_INLINE void rows_block(const Map<T>& x, int64_t image, int64_t c0,
                                  typename Wide<T>::type* out) {
  const T* from = x.data + image * x.image_stride + c0 * x.channel_stride;
  auto* to = out + image * x.pixels * x.channels + c0;
  const int64_t width = std::min(kRows, x.channels - c0);
  int64_t done = 0;
  if (std::is_same<T, float>::value && width == kRows && x.pixel_stride == 1)
    for (; done + kSquare <= x.pixels; done += kSquare) {
      Words square[kSquare];
#pragma GCC unroll 16
      for (int j = 0; j < kSquare; ++j)
        std::memcpy(&square[j], from + done + j * x.channel_stride, sizeof(Words));
      transpose(square);
#pragma GCC unroll 16
      for (int j = 0; j < kSquare; ++j)
        std::memcpy(to + (done + j) * x.channels, &square[j], sizeof(Words));
    }
  if (width == kRows)
    for (int64_t p = done; p < x.pixels; ++p)
#pragma GCC ivdep
      for (int64_t j = 0; j < kRows; ++j)
        to[p * x.channels + j] = widen(from[p * x.pixel_stride + j * x.channel_stride]);
  else
    for (int64_t p = 0; p < x.pixels; ++p)
      for (int64_t j = 0; j < width; ++j)
        to[p * x.channels + j] = widen(from[p * x.pixel_stride + j * x.channel_stride]);
}

template <typename T>
INFODISENT_INLINE void rows_copy(const Map<T>& x, int64_t image, int64_t p,
                                 typename Wide<T>::type* out) {
  const T* from = x.data + image * x.image_stride + p * x.pixel_stride;
  auto* to = out + (image * x.pixels + p) * x.channels;
#pragma GCC ivdep
  for (int64_t j = 0; j < x.channels; ++j) to[j] = widen(from[j]);
}

// sum[j] += a x[j] + b y[j]; either row may be missing.
template <typename T, typename A>
INFODISENT_INLINE void add_rows(A* sum, int64_t width, A a, const T* x, A b, const T* y) {
  if (x != nullptr && y != nullptr)
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) sum[j] += a * widen(x[j]) + b * widen(y[j]);
  else if (x != nullptr)
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) sum[j] += a * widen(x[j]);
  else if (y != nullptr)
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) sum[j] += b * widen(y[j]);
}

// Rows c0 .. c1 of du. Strips of columns outside, groups of images inside: the part of x in use
// stays in L2 while every channel gathers from it.
template <typename T>
INFODISENT_INLINE void grad_u_range(const Map<T>& x, const typename Wide<T>::type* grad_pos,
                                    const typename Wide<T>::type* grad_neg,
                                    const int32_t* pos_index, const int32_t* neg_index,
                                    typename Wide<T>::type* du, bool accumulate, int64_t c0,
                                    int64_t c1) {
  using A = typename Wide<T>::type;
  const int64_t row_bytes = std::min(kStrip, x.channels) * static_cast<int64_t>(sizeof(T));
  const int64_t group = std::max<int64_t>(1, kGroupBytes / (x.pixels * row_bytes));
  const AddHalfRows half = std::is_same<T, Float16>::value ? add_half_rows() : nullptr;
  (void)half;
  for (int64_t k = 0; k < x.channels; k += kStrip) {
    const int64_t width = std::min(kStrip, x.channels - k);
    if (!accumulate)
      for (int64_t c = c0; c < c1; ++c) std::fill_n(du + c * x.channels + k, width, A(0));
    for (int64_t first = 0; first < x.images; first += group) {
      const int64_t end = std::min(x.images, first + group);
      for (int64_t c = c0; c < c1; ++c) {
        A* sum = du + c * x.channels + k;
        for (int64_t b = first; b < end; ++b) {
          const int64_t at = b * x.channels + c;
          const T* image = x.data + b * x.image_stride + k;
          const T* p = pos_index[at] < 0 ? nullptr : image + pos_index[at] * x.pixel_stride;
          const T* q = neg_index[at] < 0 ? nullptr : image + neg_index[at] * x.pixel_stride;
          if constexpr (std::is_same<T, Float16>::value)
            if (half != nullptr) {
              half(sum, width, grad_pos[at], p, grad_neg[at], q);
              continue;
            }
          if (width == kStrip)
            add_rows<T, A>(sum, kStrip, grad_pos[at], p, grad_neg[at], q);
          else
            add_rows<T, A>(sum, width, grad_pos[at], p, grad_neg[at], q);
        }
      }
    }
  }
}

// One strip of columns of one image.
template <typename A>
INFODISENT_INLINE void grad_x_strip(const A* u, const A* grad_pos, const A* grad_neg,
                                    const int32_t* pos_index, const int32_t* neg_index, A* dx,
                                    int64_t pixels, int64_t channels, int64_t k) {
  const int64_t width = std::min(kStrip, channels - k);
  for (int64_t p = 0; p < pixels; ++p) std::fill_n(dx + p * channels + k, width, A(0));
  for (int64_t c = 0; c < channels; ++c) {
    const A* row = u + c * channels + k;
    for (int side = 0; side < 2; ++side) {
      const int32_t p = side ? neg_index[c] : pos_index[c];
      if (p < 0) continue;
      const A a = side ? grad_neg[c] : grad_pos[c];
      A* sum = dx + p * channels + k;
#pragma GCC ivdep
      for (int64_t j = 0; j < width; ++j) sum[j] += a * row[j];
    }
  }
}

#define PER_MAP(T, suffix)                                                                        \
  INFODISENT_CLONES void rows_block_##suffix(const Map<T>& x, int64_t image, int64_t c0,          \
                                             Wide<T>::type* out) {                                \
    rows_block(x, image, c0, out);                                                                \
  }                                                                                               \
  INFODISENT_CLONES void rows_copy_##suffix(const Map<T>& x, int64_t image, int64_t p,            \
                                            Wide<T>::type* out) {                                 \
    rows_copy(x, image, p, out);                                                                  \
  }                                                                                               \
  INFODISENT_CLONES void grad_u_##suffix(const Map<T>& x, const Wide<T>::type* grad_pos,          \
                                         const Wide<T>::type* grad_neg, const int32_t* pos_index, \
                                         const int32_t* neg_index, Wide<T>::type* du,             \
                                         bool accumulate, int64_t c0, int64_t c1) {               \
    grad_u_range(x, grad_pos, grad_neg, pos_index, neg_index, du, accumulate, c0, c1);            \
  }                                                                                               \
  inline void do_rows_block(const Map<T>& x, int64_t image, int64_t c0, Wide<T>::type* out) {     \
    rows_block_##suffix(x, image, c0, out);                                                       \
  }                                                                                               \
  inline void do_rows_copy(const Map<T>& x, int64_t image, int64_t p, Wide<T>::type* out) {       \
    rows_copy_##suffix(x, image, p, out);                                                         \
  }                                                                                               \
  inline void do_grad_u(const Map<T>& x, const Wide<T>::type* grad_pos,                           \
                        const Wide<T>::type* grad_neg, const int32_t* pos_index,                  \
                        const int32_t* neg_index, Wide<T>::type* du, bool accumulate, int64_t c0, \
                        int64_t c1) {                                                             \
    grad_u_##suffix(x, grad_pos, grad_neg, pos_index, neg_index, du, accumulate, c0, c1);         \
  }
PER_MAP(float, f32)
PER_MAP(double, f64)
PER_MAP(BFloat16, bf16)
PER_MAP(Float16, f16)

#define PER_TYPE(A, suffix)                                                                        \
  INFODISENT_CLONES void grad_x_##suffix(const A* u, const A* grad_pos, const A* grad_neg,         \
                                         const int32_t* pos_index, const int32_t* neg_index,       \
                                         A* dx, int64_t pixels, int64_t channels, int64_t k) {     \
    grad_x_strip(u, grad_pos, grad_neg, pos_index, neg_index, dx, pixels, channels, k);            \
  }                                                                                                \
  inline void do_grad_x(const A* u, const A* grad_pos, const A* grad_neg,                          \
                        const int32_t* pos_index, const int32_t* neg_index, A* dx, int64_t pixels, \
                        int64_t channels, int64_t k) {                                             \
    grad_x_##suffix(u, grad_pos, grad_neg, pos_index, neg_index, dx, pixels, channels, k);         \
  }
PER_TYPE(float, f32)
PER_TYPE(double, f64)

inline int team_of(int threads, int64_t tasks) {
  return static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
}

}  // namespace

template <typename T>
void rows(const Map<T>& x, typename Wide<T>::type* out, int threads) {
  const bool copy = x.channel_stride == 1;
  const int64_t parts = copy ? x.pixels : (x.channels + kRows - 1) / kRows;
  const int64_t tasks = x.images * parts;
  if (tasks == 0) return;
  const int team = team_of(threads, tasks);
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t) {
    if (copy)
      do_rows_copy(x, t / parts, t % parts, out);
    else
      do_rows_block(x, t / parts, t % parts * kRows, out);
  }
  (void)team;
}

template <typename T>
void grad_u(const Map<T>& x, const typename Wide<T>::type* grad_pos,
            const typename Wide<T>::type* grad_neg, const int32_t* pos_index,
            const int32_t* neg_index, typename Wide<T>::type* du, bool accumulate, int threads) {
  // twice as many ranges as threads, so that one held up by another process does not hold up all
  const int64_t ranges = std::min<int64_t>(x.channels, 2 * std::max(threads, 1));
  const int team = team_of(threads, ranges);
#pragma omp parallel for num_threads(team) schedule(dynamic, 1) if (team > 1)
  for (int64_t r = 0; r < ranges; ++r)
    do_grad_u(x, grad_pos, grad_neg, pos_index, neg_index, du, accumulate, x.channels * r / ranges,
              x.channels * (r + 1) / ranges);
  (void)team;
}

template <typename A>
void grad_x(const A* u, const A* grad_pos, const A* grad_neg, const int32_t* pos_index,
            const int32_t* neg_index, A* dx, int64_t images, int64_t pixels, int64_t channels,
            int threads) {
  const int64_t strips = (channels + kStrip - 1) / kStrip, tasks = images * strips;
  if (tasks == 0) return;
  const int team = team_of(threads, tasks);
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t t = 0; t < tasks; ++t) {
    // strips outside: the strip of u in use is shared by all images
    const int64_t b = t % images, k = t / images * kStrip, at = b * channels;
    do_grad_x(u, grad_pos + at, grad_neg + at, pos_index + at, neg_index + at,
              dx + b * pixels * channels, pixels, channels, k);
  }
  (void)team;
}

#define INSTANTIATE(T)                                                               \
  template void rows<T>(const Map<T>&, Wide<T>::type*, int);                         \
  template void grad_u<T>(const Map<T>&, const Wide<T>::type*, const Wide<T>::type*, \
                          const int32_t*, const int32_t*, Wide<T>::type*, bool, int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Float16)
template void grad_x<float>(const float*, const float*, const float*, const int32_t*,
                            const int32_t*, float*, int64_t, int64_t, int64_t, int);
template void grad_x<double>(const double*, const double*, const double*, const int32_t*,
                             const int32_t*, double*, int64_t, int64_t, int64_t, int);

}  // namespace infodisent
