#include "rotate_pool_screen.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "rotate_pool.h"
#include "transpose.h"

namespace infodisent {
namespace {

// Rows of X in use at a time, as integers and as they are: more than for the float tiles, since
// every panel of U is rounded anew for each such part.
constexpr int64_t kPartBytes = 16 << 20;
// Pixels that a task of the first pass rounds.
constexpr int64_t kPixels = 16;
// Where `auto` screens; measured on two AVX-512 cores (Zen 4).
constexpr int64_t kMostChannels = 8192, kFewestPixels = 32, kMostPixels = 4096, kFewestRows = 512;
// Products that are left when screening stops: beyond, the float tiles are as fast.
constexpr double kMostLeft = 0.2;

// Pixels p0 ... p1 of an image as rows of `stride` float.
template <typename T>
INFODISENT_INLINE void lay_rows(const Map<T>& x, int64_t image, int64_t p0, int64_t p1,
                                int64_t stride, float* out) {
  const T* from = x.data + image * x.image_stride + p0 * x.pixel_stride;
  const int64_t pixels = p1 - p0;
  if (x.channel_stride == 1) {
    for (int64_t p = 0; p < pixels; ++p)
#pragma GCC ivdep
      for (int64_t k = 0; k < x.channels; ++k)
        out[p * stride + k] = widen(from[p * x.pixel_stride + k]);
    return;
  }
  int64_t k = 0;
  if (pixels == kSquare && x.pixel_stride == 1)
    for (; k + kSquare <= x.channels; k += kSquare) {
      alignas(64) float line[kSquare][kSquare];
      for (int j = 0; j < kSquare; ++j)
#pragma GCC ivdep
        for (int p = 0; p < kSquare; ++p) line[j][p] = widen(from[(k + j) * x.channel_stride + p]);
      Words square[kSquare];
      std::memcpy(square, line, sizeof square);
      transpose(square);
#pragma GCC unroll 16
      for (int p = 0; p < kSquare; ++p)
        std::memcpy(out + p * stride + k, &square[p], sizeof(Words));
    }
  for (; k < x.channels; ++k)
    for (int64_t p = 0; p < pixels; ++p)
      out[p * stride + k] = widen(from[p * x.pixel_stride + k * x.channel_stride]);
}

#define LAY_ROWS(T, suffix)                                                                        \
  INFODISENT_CLONES void lay_rows_##suffix(const Map<T>& x, int64_t image, int64_t p0, int64_t p1, \
                                           int64_t stride, float* out) {                           \
    lay_rows(x, image, p0, p1, stride, out);                                                       \
  }                                                                                                \
  inline void do_lay_rows(const Map<T>& x, int64_t image, int64_t p0, int64_t p1, int64_t stride,  \
                          float* out) {                                                            \
    lay_rows_##suffix(x, image, p0, p1, stride, out);                                              \
  }
LAY_ROWS(float, f32)
LAY_ROWS(BFloat16, bf16)
LAY_ROWS(Float16, f16)

template <typename T>
class Screened {
 public:
  Screened(const Map<T>& x, const float* u, const PoolState& out, const ScreenKernel& kernel)
      : x_(x),
        u_(u),
        out_(out),
        kernel_(kernel),
        order_(dot_order(x.channels)),
        depth_((x.channels + 1) / 2),
        panels_((x.channels + kernel.width - 1) / kernel.width),
        limit_(rounded_norm(x.channels)),
        slack_(product_rounding(x.channels)) {}

  // Returns how many images were done: all, or as many as it took to see that too much is left.
  int64_t run(int threads) {
    if (x_.images == 0) return 0;
    const int64_t row_bytes = 4 * (depth_ + order_.size());
    part_ = std::min(x_.images, std::max<int64_t>(1, kPartBytes / (x_.pixels * row_bytes)));
    const int64_t parts = (x_.images + part_ - 1) / part_;
    part_ = (x_.images + parts - 1) / parts;
    const int64_t wanted = (4 * threads + panels_ - 1) / panels_;
    const int64_t group = (part_ + wanted - 1) / wanted, groups = (part_ + group - 1) / group;
    const int64_t blocks = (x_.pixels + kPixels - 1) / kPixels;
    const int team = static_cast<int>(std::min<int64_t>(threads, panels_ * groups));
    words_ = buffer<Pair>(part_ * x_.pixels * depth_);
    rows_ = buffer<float>(part_ * x_.pixels * order_.size());
    rounded_ = buffer<RoundedRow>(part_ * x_.pixels);
    std::vector<Scratch> scratches;
    for (int t = 0; t < team; ++t) scratches.emplace_back(*this);
    std::atomic<int64_t> left{0};
    int64_t done = 0;
    while (done < x_.images) {
      const int64_t first = done, images = std::min(part_, x_.images - first);
      left = 0;
#pragma omp parallel num_threads(team) if (team > 1)
      {
        Scratch& scratch = scratches[static_cast<size_t>(thread_number())];
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < images * blocks; ++t)
          round_pixels(first, t / blocks, t % blocks * kPixels, scratch);
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < panels_ * groups; ++t) {
          const int64_t b = t / panels_ * group, n = std::min(group, images - b);
          if (n > 0) left += pool(first, b, n, t % panels_ * kernel_.width, scratch);
        }
      }
      done += images;
      const double products = static_cast<double>(images * x_.pixels) * x_.channels;
      if (static_cast<double>(left) > kMostLeft * products) break;
    }
    return done;
  }

 private:
  struct Scratch {
    explicit Scratch(const Screened& s)
        : row(buffer<float>(kPixels * s.order_.size())),
          words(buffer<Pair>(s.kernel_.width * s.depth_)),
          panel(buffer<Pair>(s.kernel_.width * s.depth_)),
          u(buffer<float>(s.kernel_.width * s.order_.size())),
          z(buffer<float>((s.x_.pixels + 2 * kRows) * s.kernel_.width)),
          error(buffer<float>(s.x_.pixels)),
          left(buffer<uint64_t>(s.x_.pixels)) {}
    Buffer<float> row;
    Buffer<Pair> words, panel;
    Buffer<float> u, z, error;
    Buffer<uint64_t> left;
  };

  void round_pixels(int64_t first, int64_t image, int64_t p0, Scratch& s) {
    const int64_t p1 = std::min(x_.pixels, p0 + kPixels), size = order_.size();
    for (int64_t p = 0; p < p1 - p0; ++p)
      std::fill(s.row.get() + p * size + x_.channels, s.row.get() + (p + 1) * size, 0.0f);
    do_lay_rows(x_, first + image, p0, p1, size, s.row.get());
    for (int64_t p = p0; p < p1; ++p) {
      const int64_t at = image * x_.pixels + p;
      const float* row = s.row.get() + (p - p0) * size;
      rounded_[at] = round_row(row, x_.channels, limit_, words_.get() + at * depth_);
      reorder_row(row, order_, rows_.get() + at * size);
    }
  }

  // Channels c0 ... of images b ... b + images of the part that begins with image `first`. Returns
  // the number of products that were left.
  int64_t pool(int64_t first, int64_t b, int64_t images, int64_t c0, Scratch& s) {
    const int64_t width = kernel_.width, size = order_.size(), pixels = x_.pixels;
    const int used = static_cast<int>(std::min(width, x_.channels - c0));
    // bounds of what a panel's rows add to an error, for its worst row
    float of_row = 0, of_norm = 0;
    for (int64_t j = 0; j < width; ++j) {
      Pair* words = s.words.get() + j * depth_;
      if (j >= used) {
        std::fill_n(words, depth_, Pair{0});
        continue;
      }
      float* row = s.row.get();
      std::copy_n(u_ + (c0 + j) * x_.channels, x_.channels, row);
      std::fill(row + x_.channels, row + size, 0.0f);
      const RoundedRow u = round_row(row, x_.channels, limit_, words);
      reorder_row(row, order_, s.u.get() + j * size);
      const float norm = u.inverse == 0 ? u.norm : u.norm / u.inverse + u.error;  // of integers
      of_row = std::max(of_row, norm);
      of_norm = std::max(of_norm, u.error + slack_ * norm);
    }
    of_norm = std::max(of_norm, 1e-30f);  // times a norm of Inf it must not be NaN
    const bool bounded = of_norm < std::numeric_limits<float>::infinity();
    kernel_.pack(s.words.get(), depth_, s.panel.get());
    const uint64_t lanes = used == 64 ? ~uint64_t{0} : (uint64_t{1} << used) - 1;
    int64_t total = 0, row = b * pixels, ready = 0;
    const int64_t end = (b + images) * pixels;
    float* z = s.z.get();
    for (int64_t image = b; image < b + images; ++image) {
      for (; ready < pixels; ready += kRows, row += kRows)
        multiply_rows(
            kernel_, words_.get(), depth_, row, end, s.panel.get(),
            [this](int64_t at) { return rounded_[at].inverse; }, z + ready * width);
      for (int64_t p = 0; p < pixels; ++p) {
        const RoundedRow& x = rounded_[image * pixels + p];
        s.error[p] = bounded ? 1.0001f * (of_row * (x.error * x.inverse) + of_norm * x.norm)
                             : std::numeric_limits<float>::infinity();
      }
      kernel_.leave(z, s.error.get(), pixels, s.left.get());
      total += finish(first + image, image, c0, used, lanes, s);
      ready -= pixels;  // rows of the next image that its last tile has done already
      std::copy_n(z + pixels * width, ready * width, z);
    }
    return total;
  }

  // Multiplies what is left of an image, in the order of its pixels, and pools it.
  int64_t finish(int64_t image, int64_t b, int64_t c0, int used, uint64_t lanes, Scratch& s) {
    const int64_t size = order_.size(), at = image * x_.channels + c0;
    float* pos = out_.pos + at;
    float* neg = out_.neg + at;
    int32_t* pos_index = out_.pos_index + at;
    int32_t* neg_index = out_.neg_index + at;
    std::fill_n(pos, used, 0.0f);
    std::fill_n(neg, used, 0.0f);
    std::fill_n(pos_index, used, -1);
    std::fill_n(neg_index, used, -1);
    int64_t total = 0;
    for (int64_t p = 0; p < x_.pixels; ++p) {
      uint64_t bits = s.left[p] & lanes;
      if (bits == 0) continue;
      const float* u[64];
      int channel[64], count = 0;
      for (; bits != 0; bits &= bits - 1) {
        channel[count] = __builtin_ctzll(bits);
        u[count] = s.u.get() + channel[count] * size;
        ++count;
      }
      float value[64];
      kernel_.dots(rows_.get() + (b * x_.pixels + p) * size, u, count, order_, value);
      for (int i = 0; i < count; ++i) {
        const int j = channel[i];
        const int32_t here = static_cast<int32_t>(p);
        join(value[i], here, pos + j, pos_index + j);
        join(-value[i], here, neg + j, neg_index + j);
      }
      total += count;
    }
    return total;
  }

  const Map<T>& x_;
  const float* u_;
  const PoolState out_;
  const ScreenKernel& kernel_;
  const DotOrder order_;
  const int64_t depth_, panels_;
  const float limit_, slack_;
  int64_t part_ = 0;
  Buffer<Pair> words_;
  Buffer<float> rows_;
  Buffer<RoundedRow> rounded_;
};

}  // namespace

template <typename T>
int64_t rotate_pool_screened(const Map<T>& x, const float* u, float* pos, float* neg,
                             int32_t* pos_index, int32_t* neg_index, int threads, int isa) {
  const ScreenKernel* kernel = screen_kernel(static_cast<ScreenIsa>(isa));
  if (kernel == nullptr) throw std::invalid_argument("rotate_pool: no such instructions here");
  return Screened<T>(x, u, {pos, neg, pos_index, neg_index}, *kernel).run(threads);
}

bool screen_pays(int64_t images, int64_t pixels, int64_t channels) {
  // Below these the rounding of U, or the two products an image and channel that are always left,
  // cost more than is gained; above, the rounded rows no longer stay in cache.
  if (channels < kScreened || channels > kMostChannels) return false;
  if (pixels < kFewestPixels || pixels > kMostPixels || images * pixels < kFewestRows) return false;
  return screen_gain() > kWorthwhile;
}

double screen_gain() {
  if (screen_kernel(ScreenIsa::kAuto) == nullptr || float_tile(Isa::kAuto) == nullptr) return 0;
  static const double gain = [] {
    constexpr int64_t kChannels = 1024, kMapPixels = 49, kImages = 12;
    constexpr int64_t kResults = kImages * kChannels;
    auto x = buffer<float>(kResults * kMapPixels), u = buffer<float>(kChannels * kChannels);
    auto values = buffer<float>(2 * kResults);
    auto indices = buffer<int32_t>(2 * kResults);
    uint32_t state = 1;
    const auto draw = [&state](float* out, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        float sum = -2;  // of four numbers in [0, 1): close to normal
        for (int k = 0; k < 4; ++k) {
          state = state * 1664525u + 1013904223u;
          sum += static_cast<float>(state >> 8) * 0x1p-24f;
        }
        out[i] = sum;
      }
    };
    draw(x.get(), kResults * kMapPixels);
    draw(u.get(), kChannels * kChannels);
    const Map<float> map{x.get(),   kImages, kMapPixels, kChannels, kMapPixels * kChannels,
                         kChannels, 1};
    float *pos = values.get(), *neg = pos + kResults;
    int32_t *pos_index = indices.get(), *neg_index = pos_index + kResults;
    double best[2] = {1e9, 1e9};
    for (int round = 0; round < 4; ++round)  // the first warms the caches
      for (int which = 0; which < 2; ++which) {
        const auto start = std::chrono::steady_clock::now();
        if (which == 0)
          rotate_pool(map, u.get(), pos, neg, pos_index, neg_index, 1, 0);
        else
          rotate_pool_screened(map, u.get(), pos, neg, pos_index, neg_index, 1, 0);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        if (round > 0) best[which] = std::min(best[which], took.count());
      }
    return best[0] / best[1];
  }();
  return gain;
}

template int64_t rotate_pool_screened<float>(const Map<float>&, const float*, float*, float*,
                                             int32_t*, int32_t*, int, int);
template int64_t rotate_pool_screened<BFloat16>(const Map<BFloat16>&, const float*, float*, float*,
                                                int32_t*, int32_t*, int, int);
template int64_t rotate_pool_screened<Float16>(const Map<Float16>&, const float*, float*, float*,
                                               int32_t*, int32_t*, int, int);

}  // namespace infodisent
