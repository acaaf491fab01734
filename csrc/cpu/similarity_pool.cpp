#include "similarity_pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "buffer.h"
#include "parallel.h"
#include "product_pool.h"
#include "rotate_pool.h"
#include "rotate_pool_tiles.h"
#include "similarity_pool_screen.h"
#include "transpose.h"

namespace infodisent {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Numbers of a sum that run side by side.
constexpr int kSide = 16;
using Side = Lanes<kSide>::value;

// The largest of one or two views of the products, from the pixels that count.
struct Views {
  static constexpr float kEmpty = -kInfinity;
  template <typename E>
  using Task = ViewTask<E>;

  const Matches& matches;
  const float* square;   // [n, P], of the pixels
  const uint8_t* valid;  // [n, P] or nullptr
  int64_t pixels;

  bool counts(int64_t image, int64_t p) const {
    return valid == nullptr || valid[image * pixels + p] != 0;
  }
  template <typename E>
  void place(ViewTask<E>& task, int r, int64_t image, int64_t p) const {
    for (int v = 0; v < matches.views; ++v) {
      const Similarity similarity = matches.similarity[v];
      task.scale[v][r] = 1.0f;
      task.shift[v][r] = 0.0f;
      if (similarity == Similarity::kDot) continue;
      const float norm = square[image * pixels + p];
      if (similarity == Similarity::kL2)
        task.shift[v][r] = -0.5f * norm;
      else
        task.scale[v][r] = norm == 0.0f ? 0.0f : 1.0f / std::sqrt(norm);
    }
  }
  template <typename E>
  void multiply(const TileKernel<E>& kernel, ViewTask<E>& task, bool packed, const E* panel,
                int64_t depth, int64_t block) const {
    task.views = matches.views;
    kernel.views(task, packed, panel, depth, block);
  }
  int sides() const { return matches.views; }
};

INFODISENT_INLINE float total(const Side& sums) {
  float parts[kSide];
  std::memcpy(parts, &sums, sizeof parts);
  for (int step = kSide / 2; step > 0; step /= 2)
    for (int j = 0; j < step; ++j) parts[j] += parts[j + step];
  return parts[0];
}

// Parts of a . b, or of |a - b|^2: `sums` of every 16th number, and the rest.
template <bool kDifferences>
INFODISENT_INLINE void parts_of(const float* a, const float* b, int64_t channels, Side& sums,
                                float& rest) {
  sums = Side{};
  int64_t k = 0;
  for (; k + kSide <= channels; k += kSide) {
    Side left, right;
    std::memcpy(&left, a + k, sizeof left);
    std::memcpy(&right, b + k, sizeof right);
    if (kDifferences) {
      left -= right;
      sums += left * left;
    } else {
      sums += left * right;
    }
  }
  rest = 0.0f;
  for (; k < channels; ++k) rest += kDifferences ? (a[k] - b[k]) * (a[k] - b[k]) : a[k] * b[k];
}

INFODISENT_INLINE float dot_of(const float* a, const float* b, int64_t channels) {
  Side sums;
  float rest;
  parts_of<false>(a, b, channels, sums, rest);
  return total(sums) + rest;
}

INFODISENT_INLINE float distance_of(const float* a, const float* b, int64_t channels) {
  Side sums;
  float rest;
  parts_of<true>(a, b, channels, sums, rest);
  return total(sums) + rest;
}

// The same of kSide pairs, whose sums are added up side by side: in the order of `total`.
template <bool kDifferences>
INFODISENT_INLINE void many_of(const float* const* a, const float* const* b, int64_t channels,
                               float* out /* [kSide] */) {
  static_assert(kSide == kSquare, "sums are turned in squares");
  Words square[kSide];
  float rest[kSide];
  for (int i = 0; i < kSide; ++i) {
    Side sums;
    parts_of<kDifferences>(a[i], b[i], channels, sums, rest[i]);
    std::memcpy(&square[i], &sums, sizeof sums);
  }
  transpose(square);
  Side lane[kSide], behind;
  std::memcpy(lane, square, sizeof square);
  std::memcpy(&behind, rest, sizeof rest);
#pragma GCC unroll 4
  for (int step = kSide / 2; step > 0; step /= 2)
#pragma GCC unroll 8
    for (int j = 0; j < step; ++j) lane[j] += lane[j + step];
  lane[0] += behind;
  std::memcpy(out, &lane[0], sizeof lane[0]);
}

// out[i] = |row i|^2.
INFODISENT_CLONES void squares_of(const float* rows, int64_t count, int64_t channels, float* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = dot_of(rows + i * channels, rows + i * channels, channels);
}

// One image and the prototypes.
struct ImageRows {
  const float* rows;     // [P, C]
  const float* square;   // [P]
  const uint8_t* valid;  // [P] or nullptr
  int64_t pixels, channels;
  const float* v;         // [M, C]
  const float* v_square;  // [M]

  bool counts(int64_t p) const { return valid == nullptr || valid[p] != 0; }
  const float* row(int64_t p) const { return rows + p * channels; }
};

// The nearest pixel, by differences.
INFODISENT_INLINE void nearest(const ImageRows& image, const float* v, float* value,
                               int32_t* index) {
  *index = -1;
  for (int64_t p = 0; p < image.pixels; ++p) {
    if (!image.counts(p)) continue;
    const float distance = distance_of(image.row(p), v, image.channels);
    if (*index >= 0 && !(distance < *value) && distance == distance) continue;
    *value = distance;
    *index = static_cast<int32_t>(p);
    if (distance != distance) return;
  }
}

// Values of up to kSide prototypes from m on.
template <bool kL2>
INFODISENT_INLINE void refine_some(const ImageRows& image, float slack, int64_t m, int count,
                                   float* value /* [M] */, int32_t* index /* [M] */) {
  const float *pixel[kSide], *prototype[kSide];
  for (int i = 0; i < kSide; ++i) {
    const int64_t j = m + std::min(i, count - 1);
    pixel[i] = image.row(index[j]);
    prototype[i] = image.v + j * image.channels;
  }
  float found[kSide];
  many_of<kL2>(pixel, prototype, image.channels, found);
  for (int i = 0; i < count; ++i) {
    const int64_t p = index[m + i];
    const float square = image.square[p], v_square = image.v_square[m + i];
    if (!kL2) {
      const float norms = std::sqrt(square) * std::sqrt(v_square);
      value[m + i] = norms == 0.0f && found[i] == found[i] ? 0.0f : found[i] / norms;
      continue;
    }
    const float key = value[m + i], bound = slack * (square + v_square);
    value[m + i] = found[i];
    if (!(found[i] > bound) || !(std::fabs(key) < kInfinity))
      nearest(image, prototype[i], value + m + i, index + m + i);
  }
}

// Values of prototypes m0 ... m1 from the winners that the product found.
INFODISENT_CLONES void refine(const ImageRows& image, Similarity similarity, float slack,
                              int64_t m0, int64_t m1, float* value /* [M] */,
                              int32_t* index /* [M] */) {
  int32_t first = 0;
  while (!image.counts(first)) ++first;
  for (int64_t m = m0; m < m1; ++m)
    if (index[m] < 0) index[m] = first;  // nothing was above -Inf
  if (similarity == Similarity::kDot) return;
  for (int64_t m = m0; m < m1; m += kSide) {
    const int count = static_cast<int>(std::min<int64_t>(kSide, m1 - m));
    if (similarity == Similarity::kL2)
      refine_some<true>(image, slack, m, count, value, index);
    else
      refine_some<false>(image, slack, m, count, value, index);
  }
}

// What finds the winners by integers; nullptr where the float tiles do.
template <typename T>
const ScreenKernel* screen_of(const Map<T>& x, int64_t count, const Matches& matches, int isa,
                              int screen) {
  if (screen == 1 || matches.views > 1 || matches.similarity[0] == Similarity::kDot) return nullptr;
  if (screen == 0 && (isa != 0 || !similarity_screen_pays(x.images, x.pixels, x.channels, count)))
    return nullptr;
  const ScreenKernel* kernel =
      screen_kernel(screen == 3 ? ScreenIsa::kPlain : static_cast<ScreenIsa>(isa));
  if (kernel == nullptr) throw std::invalid_argument("similarity_pool: no such instructions here");
  return kernel;
}

}  // namespace

template <typename T>
void similarity_pool(const Map<T>& x, const float* prototypes, int64_t count, const uint8_t* valid,
                     const Matches& matches, int threads, int isa, int screen) {
  const TileKernel<float>* kernel = float_tile(static_cast<Isa>(isa));
  if (kernel == nullptr) throw std::invalid_argument("similarity_pool: no such instructions here");
  const ScreenKernel* screened = screen_of(x, count, matches, isa, screen);
  if (x.images == 0) return;
  const int64_t pixels = x.pixels, channels = x.channels;
  const bool refined = matches.similarity[0] != Similarity::kDot ||
                       (matches.views > 1 && matches.similarity[1] != Similarity::kDot);
  // Rows as the refinement reads them; a map that is rows already is read where it lies.
  const bool in_place = std::is_same<T, float>::value && x.channel_stride == 1 &&
                        x.pixel_stride == channels && x.image_stride == pixels * channels;
  const int64_t part = std::min(
      x.images, std::max<int64_t>(1, kChunkBytes / (pixels * channels * int64_t{sizeof(float)})));
  auto laid = buffer<float>(refined && !in_place ? part * pixels * channels : 0);
  auto square = buffer<float>(refined ? part * pixels : 0);
  auto v_square = buffer<float>(refined ? count : 0);
  if (refined) squares_of(prototypes, count, channels, v_square.get());
  const int64_t sums = sum_block(channels) + channels / sum_block(channels) + 8;
  const float slack = 8 * static_cast<float>(sums) * 0x1p-24f;
  for (int64_t start = 0; start < x.images; start += part) {
    Map<T> some = x;
    some.data += start * x.image_stride;
    some.images = std::min(part, x.images - start);
    const uint8_t* counted = valid == nullptr ? nullptr : valid + start * pixels;
    const float* lines = laid.get();
    if (refined) {
      if (in_place)
        lines = reinterpret_cast<const float*>(some.data);
      else
        rows(some, laid.get(), threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
      for (int64_t b = 0; b < some.images; ++b)
        squares_of(lines + b * pixels * channels, pixels, channels, square.get() + b * pixels);
    }
    Matches here = matches;
    for (int v = 0; v < matches.views; ++v) {
      here.value[v] += start * count;
      here.index[v] += start * count;
    }
    const int second = matches.views - 1;
    const PoolState out{here.value[0], here.value[second], here.index[0], here.index[second]};
    const Views views{here, square.get(), counted, pixels};
    // what was laid out as rows serves the product, too
    if (screened != nullptr) {
      similarity_screened({lines, square.get(), counted, some.images, pixels, channels}, prototypes,
                          count, here.similarity[0], here.value[0], here.index[0], *kernel,
                          *screened, threads);
    } else if (refined) {
      const Map<float> flat{lines, some.images, pixels, channels, pixels * channels, channels, 1};
      ProductPool<float, float, Views>(flat, prototypes, count, out, *kernel, true, views)
          .run(threads);
    } else {
      const bool direct = std::is_same<T, float>::value && x.channel_stride == 1;
      ProductPool<T, float, Views>(some, prototypes, count, out, *kernel, direct, views)
          .run(threads);
    }
    // as many tasks as share the work out, each with a part of the prototypes
    const int64_t shares = std::max<int64_t>(1, std::min<int64_t>(count / 64, 4 * threads));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t t = 0; t < some.images * shares; ++t) {
      const int64_t b = t / shares, s = t % shares;
      const ImageRows image{lines + b * pixels * channels,
                            square.get() + b * pixels,
                            counted == nullptr ? nullptr : counted + b * pixels,
                            pixels,
                            channels,
                            prototypes,
                            v_square.get()};
      for (int v = 0; v < matches.views; ++v)
        refine(image, matches.similarity[v], slack, count * s / shares, count * (s + 1) / shares,
               here.value[v] + b * count, here.index[v] + b * count);
    }
  }
}

template void similarity_pool<float>(const Map<float>&, const float*, int64_t, const uint8_t*,
                                     const Matches&, int, int, int);
template void similarity_pool<BFloat16>(const Map<BFloat16>&, const float*, int64_t, const uint8_t*,
                                        const Matches&, int, int, int);
template void similarity_pool<Float16>(const Map<Float16>&, const float*, int64_t, const uint8_t*,
                                       const Matches&, int, int, int);

}  // namespace infodisent
