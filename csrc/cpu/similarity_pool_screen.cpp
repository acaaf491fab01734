#include "similarity_pool_screen.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "buffer.h"
#include "parallel.h"

namespace infodisent {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Above, a bound is none: sums of such numbers stay finite.
constexpr float kLargestBound = 1e37f;
// Roundings of a key, of its shift and its scale, as parts of either.
constexpr float kRounding = 0x1p-21f;
// Where `auto` screens: fewer channels do not pay for the bounds.
constexpr int64_t kFewestChannels = 48, kMostChannels = 8192, kFewestPixels = 16,
                  kMostPixels = 4096, kFewestRows = 512, kFewestPrototypes = 64;
// Keys of an image and a panel, as a part of all, from which on the tile computes them all; and
// images and panels, as a part of those that were screened, from which on no more are.
constexpr double kMostLeft = 0.1, kMostGivenUp = 0.3;
constexpr int64_t kFirstTried = 64;
// Products that are added up side by side, each a chain of its own.
constexpr int kChains = 8;

// out[i] = x[i] . v[i], added up as a float tile does; fused by name, as compilers may vectorise a
// sum in its order by taking products and sums apart.
#ifdef INFODISENT_X86
__attribute__((target("arch=x86-64-v3")))
#endif
void chains(const float* const* x, const float* const* v, int64_t channels, int64_t block,
            float* out) {
  for (int64_t start = 0; start < channels; start += block) {
    const int64_t end = std::min(channels, start + block);
    float part[kChains] = {};
    for (int64_t k = start; k < end; ++k)
#pragma GCC unroll 8
      for (int i = 0; i < kChains; ++i) part[i] = std::fma(v[i][k], x[i][k], part[i]);
    for (int i = 0; i < kChains; ++i) out[i] = start == 0 ? part[i] : part[i] + out[i];
  }
}

// What a panel's rows add to an error, for its worst row, and their common scale.
struct PanelBound {
  float norm;   // of integers
  float error;  // of rounding and of the float product, for a pixel of norm 1
  float scale;
};

class Screened {
 public:
  Screened(const PixelRows& x, const float* v, int64_t count, Similarity similarity, float* value,
           int32_t* index, const TileKernel<float>& tile, const ScreenKernel& screen)
      : x_(x),
        v_(v),
        count_(count),
        l2_(similarity == Similarity::kL2),
        value_(value),
        index_(index),
        tile_(tile),
        screen_(screen),
        depth_((x.channels + 1) / 2),
        panels_((count + screen.width - 1) / screen.width),
        block_(sum_block(x.channels)),
        limit_(rounded_norm(x.channels)),
        slack_(product_rounding(x.channels)) {}

  void run(int threads) {
    const int64_t rows = x_.images * x_.pixels, wanted = (4 * threads + panels_ - 1) / panels_;
    const int64_t group = (x_.images + wanted - 1) / wanted;
    const int64_t groups = (x_.images + group - 1) / group;
    const int team = static_cast<int>(std::min<int64_t>(threads, panels_ * groups));
    words_ = buffer<Pair>(rows * depth_);
    rounded_ = buffer<RoundedRow>(rows);
    packed_ = buffer<Pair>(panels_ * screen_.width * depth_);
    bounds_ = buffer<PanelBound>(panels_);
    std::vector<Scratch> scratches;
    for (int t = 0; t < team; ++t) scratches.emplace_back(*this);
#pragma omp parallel num_threads(team) if (team > 1)
    {
      Scratch& scratch = scratches[static_cast<size_t>(thread_number())];
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row)
        rounded_[row] = round_row(x_.rows + row * x_.channels, x_.channels, limit_,
                                  words_.get() + row * depth_);
#pragma omp for schedule(dynamic, 1)
      for (int64_t panel = 0; panel < panels_; ++panel) lay_out(panel, scratch);
#pragma omp for schedule(dynamic, 1)
      for (int64_t t = 0; t < panels_ * groups; ++t) {
        const int64_t b = t / panels_ * group;
        pool(b, std::min(group, x_.images - b), t % panels_, scratch);
      }
    }
  }

 private:
  struct Scratch {
    explicit Scratch(const Screened& s)
        : words(buffer<Pair>(s.screen_.width * s.depth_)),
          panel(buffer<float>(s.tile_.width * s.x_.channels)),
          z(buffer<float>((s.x_.pixels + 2 * kRows) * s.screen_.width)),
          low(buffer<float>(s.x_.pixels)),
          high(buffer<float>(s.x_.pixels)),
          left(buffer<uint64_t>(s.x_.pixels)) {}
    Buffer<Pair> words;
    Buffer<float> panel, z, low, high;
    Buffer<uint64_t> left;
  };

  int used(int64_t panel) const {
    return static_cast<int>(std::min<int64_t>(screen_.width, count_ - panel * screen_.width));
  }
  const float* row(int64_t image, int64_t p) const {
    return x_.rows + (image * x_.pixels + p) * x_.channels;
  }
  bool counts(int64_t image, int64_t p) const {
    return x_.valid == nullptr || x_.valid[image * x_.pixels + p] != 0;
  }
  float scale_of(float square) const {
    return l2_ ? 1.0f : square == 0.0f ? 0.0f : 1.0f / std::sqrt(square);
  }
  float shift_of(float square) const { return l2_ ? -0.5f * square : 0.0f; }

  void lay_out(int64_t panel, Scratch& s) {
    const float* v = v_ + panel * screen_.width * x_.channels;
    PanelBound bound{0, 0, kLargestScale};
    if (l2_)
      for (int j = 0; j < used(panel); ++j) {
        const RoundedRow own = round_row(v + j * x_.channels, x_.channels, limit_, s.words.get());
        if (own.inverse > 0) bound.scale = std::min(bound.scale, 0.9999f / own.inverse);
      }
    std::fill_n(s.words.get(), screen_.width * depth_, Pair{0});
    for (int j = 0; j < used(panel); ++j) {
      const RoundedRow own = round_row(v + j * x_.channels, x_.channels, limit_,
                                       s.words.get() + j * depth_, bound.scale);
      const float norm = own.inverse == 0 ? own.norm : own.norm / own.inverse + own.error;
      bound.norm = std::max(bound.norm, norm);
      bound.error = std::max(bound.error, own.error + slack_ * norm);
    }
    if (bound.scale == kLargestScale) bound.scale = 1;  // nothing but zeros, or without bounds
    screen_.pack(s.words.get(), depth_, packed_.get() + panel * screen_.width * depth_);
    bounds_[panel] = bound;
  }

  // What is to be added to the products of an image, at least and at most; `inverse` goes before.
  void bound_pixels(int64_t image, const PanelBound& of, Scratch& s) const {
    for (int64_t p = 0; p < x_.pixels; ++p) {
      const int64_t at = image * x_.pixels + p;
      const RoundedRow& x = rounded_[at];
      const float scale = scale_of(x_.square[at]);
      const float shift = l2_ ? of.scale * shift_of(x_.square[at]) : 0.0f;
      const float error = 1.0001f * (scale * (of.norm * (x.error * x.inverse) + of.error * x.norm) +
                                     kRounding * (scale * of.norm * x.norm - shift));
      const bool bounded = error < kLargestBound && shift > -kLargestBound;
      s.low[p] = bounded ? shift - error : -kInfinity;
      s.high[p] = bounded ? shift + error : kInfinity;
      if (!counts(image, p)) s.low[p] = s.high[p] = -kInfinity;
    }
  }

  void pool(int64_t b, int64_t images, int64_t panel, Scratch& s) {
    const int64_t width = screen_.width, pixels = x_.pixels, end = (b + images) * pixels;
    const Pair* packed = packed_.get() + panel * width * depth_;
    bool laid = false;
    int64_t at = b * pixels, ready = 0;
    float* z = s.z.get();
    const auto inverse = [this](int64_t here) {
      const float value = rounded_[here].inverse * scale_of(x_.square[here]);
      return value < kLargestBound ? value : 0;
    };
    for (int64_t image = b; image < b + images; ++image) {
      if (given_up()) {
        multiply(image, panel, laid, s);
        at = (image + 1) * pixels, ready = 0;
        continue;
      }
      for (; ready < pixels; ready += kRows, at += kRows)
        multiply_rows(screen_, words_.get(), depth_, at, end, packed, inverse, z + ready * width);
      bound_pixels(image, bounds_[panel], s);
      screen_.leave_largest(z, s.low.get(), s.high.get(), pixels, s.left.get());
      tried_.fetch_add(1, std::memory_order_relaxed);
      if (!finish(image, panel, s)) {
        lost_.fetch_add(1, std::memory_order_relaxed);
        multiply(image, panel, laid, s);
      }
      ready -= pixels;  // rows of the next image that its last tile has done already
      std::copy_n(z + pixels * width, ready * width, z);
    }
  }

  // Whether too much is left everywhere. When that is seen changes no result.
  bool given_up() const {
    const int64_t tried = tried_.load(std::memory_order_relaxed);
    return tried >= kFirstTried && static_cast<double>(lost_.load(std::memory_order_relaxed)) >
                                       kMostGivenUp * static_cast<double>(tried);
  }

  // The winners among what is left of an image; false where that is too much.
  bool finish(int64_t image, int64_t panel, Scratch& s) const {
    const int width = used(panel);
    const uint64_t lanes = width == 64 ? ~uint64_t{0} : (uint64_t{1} << width) - 1;
    uint64_t once = 0, doubtful = 0;
    for (int64_t p = 0; p < x_.pixels; ++p) {
      if (s.left[p] != 0 && !counts(image, p)) s.left[p] = 0;
      doubtful |= once & s.left[p];
      once |= s.left[p];
    }
    doubtful &= lanes;
    if (doubtful != 0) {
      int64_t keys = 0;
      for (int64_t p = 0; p < x_.pixels; ++p) keys += __builtin_popcountll(s.left[p] & doubtful);
      if (static_cast<double>(keys) > kMostLeft * static_cast<double>(x_.pixels * width))
        return false;
    }
    const int64_t at = image * count_ + panel * screen_.width;
    for (int64_t p = 0; p < x_.pixels; ++p)
      for (uint64_t bits = s.left[p] & lanes & ~doubtful; bits != 0; bits &= bits - 1) {
        const int j = __builtin_ctzll(bits);
        value_[at + j] = 0;
        index_[at + j] = static_cast<int32_t>(p);
      }
    if (doubtful != 0) settle(image, panel, doubtful, s);
    return true;
  }

  // Computes the keys of what is left of some prototypes, in the order of the pixels.
  void settle(int64_t image, int64_t panel, uint64_t doubtful, const Scratch& s) const {
    const int64_t at = image * count_ + panel * screen_.width;
    const float* v = v_ + panel * screen_.width * x_.channels;
    for (uint64_t bits = doubtful; bits != 0; bits &= bits - 1) {
      value_[at + __builtin_ctzll(bits)] = -kInfinity;
      index_[at + __builtin_ctzll(bits)] = -1;
    }
    const float *left[kChains], *right[kChains];
    int32_t pixel[kChains];
    int of[kChains], waiting = 0;
    const auto flush = [&] {
      if (waiting == 0) return;
      for (int i = waiting; i < kChains; ++i) left[i] = left[0], right[i] = right[0];
      float product[kChains];
      chains(left, right, x_.channels, block_, product);
      for (int i = 0; i < waiting; ++i) {
        const float square = x_.square[image * x_.pixels + pixel[i]];
        join(scale_of(square) * product[i] + shift_of(square), pixel[i], value_ + at + of[i],
             index_ + at + of[i]);
      }
      waiting = 0;
    };
    for (int64_t p = 0; p < x_.pixels; ++p)
      for (uint64_t bits = s.left[p] & doubtful; bits != 0; bits &= bits - 1) {
        of[waiting] = __builtin_ctzll(bits);
        pixel[waiting] = static_cast<int32_t>(p);
        left[waiting] = row(image, p);
        right[waiting] = v + of[waiting] * x_.channels;
        if (++waiting == kChains) flush();
      }
    flush();
  }

  // All keys of an image and a panel, by the float tile.
  void multiply(int64_t image, int64_t panel, bool& laid, Scratch& s) const {
    const int64_t c0 = panel * screen_.width, at = image * count_ + c0;
    if (!laid) tile_.pack(v_ + c0 * x_.channels, count_ - c0, x_.channels, s.panel.get());
    laid = true;
    float best[2 * kMostWidth];
    int32_t index[2 * kMostWidth];
    std::fill_n(best, 2 * kMostWidth, -kInfinity);
    std::fill_n(index, 2 * kMostWidth, -1);
    ViewTask<float> task;
    task.views = 1;
    task.rows = 0;
    for (int64_t p = 0; p < x_.pixels; ++p) {
      if (counts(image, p)) {
        const int r = task.rows++;
        const float square = x_.square[image * x_.pixels + p];
        task.row[r] = row(image, p);
        task.pixel[r] = static_cast<int32_t>(p);
        task.state[r] = {best, best + kMostWidth, index, index + kMostWidth};
        task.scale[0][r] = scale_of(square);
        task.shift[0][r] = shift_of(square);
      }
      if (task.rows < kRows && p + 1 < x_.pixels) continue;
      if (task.rows == 0) break;
      for (int r = task.rows; r < kRows; ++r) task.row[r] = task.row[0];
      tile_.views(task, false, s.panel.get(), x_.channels, block_);
      task.rows = 0;
    }
    std::copy_n(best, used(panel), value_ + at);
    std::copy_n(index, used(panel), index_ + at);
  }

  const PixelRows& x_;
  const float* v_;  // [M, C]
  const int64_t count_;
  const bool l2_;  // or cosine
  float* value_;
  int32_t* index_;
  const TileKernel<float>& tile_;
  const ScreenKernel& screen_;
  const int64_t depth_, panels_, block_;
  const float limit_, slack_;
  Buffer<Pair> words_, packed_;
  Buffer<RoundedRow> rounded_;
  Buffer<PanelBound> bounds_;
  std::atomic<int64_t> tried_{0}, lost_{0};
};

}  // namespace

void similarity_screened(const PixelRows& x, const float* prototypes, int64_t count,
                         Similarity similarity, float* value, int32_t* index,
                         const TileKernel<float>& tile, const ScreenKernel& screen, int threads) {
  if (similarity == Similarity::kDot || tile.width < screen.width)
    throw std::invalid_argument("similarity_pool: this is not screened");
  if (x.images > 0)
    Screened(x, prototypes, count, similarity, value, index, tile, screen).run(threads);
}

bool similarity_screen_pays(int64_t images, int64_t pixels, int64_t channels, int64_t count) {
  if (channels < kFewestChannels || channels > kMostChannels || count < kFewestPrototypes)
    return false;
  if (pixels < kFewestPixels || pixels > kMostPixels || images * pixels < kFewestRows) return false;
  return screen_gain() > kWorthwhile;
}

}  // namespace infodisent
