#include "rotate_pool.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "buffer.h"
#include "parallel.h"
#include "rotate_pool_pack.h"
#include "rotate_pool_tiles.h"

namespace infodisent {
namespace {

// Rows of X in use at a time, laid out for the tiles or as they are: they should stay in the
// last-level cache while every panel of U passes over them, and be enough to pay for packing the
// panels. Measured with 2 cores and 32 MiB of L3 (B = 64, C = 512 ... 2048): 1 MiB is 15 % slower
// at C = 2048, 4 to 16 MiB are equal.
constexpr int64_t kChunkBytes = 8 << 20;
// Rows that pay for packing a panel.
constexpr int64_t kGroupRows = 128;
// Most images of a task: the state of their pools is 1 KiB each.
constexpr int64_t kGroupImages = 1024;
// Channels that are laid out at a time; even.
constexpr int64_t kBlock = 128;

template <typename T, typename E>
class Forward {
 public:
  Forward(const Map<T>& x, const E* u, float* pos, float* neg, int32_t* pos_index,
          int32_t* neg_index, const TileKernel<E>& kernel, bool direct)
      : x_(x), u_(u), out_{pos, neg, pos_index, neg_index}, kernel_(kernel), direct_(direct) {}

  void run(int threads) {
    if (x_.images == 0) return;
    depth_ = std::is_same<E, Pair>::value ? x_.channels / 2 : x_.channels;
    block_ = sum_block(x_.channels);
    panels_ = (x_.channels + kernel_.width - 1) / kernel_.width;
    // A cache line between tiles that are written side by side keeps them off the same sets; small
    // ones have no need of it.
    tile_size_ = depth_ * kRows + (depth_ >= 64 ? 16 : 0);
    const int64_t row_bytes = tile_size_ * static_cast<int64_t>(sizeof(E)) / kRows;
    chunk_ = std::min(x_.images, std::max<int64_t>(1, kChunkBytes / (x_.pixels * row_bytes)));
    const int64_t chunks = (x_.images + chunk_ - 1) / chunk_;
    chunk_ = (x_.images + chunks - 1) / chunks;  // all of about one size
    // enough tasks to share out, each long enough to pay for its panel
    const int64_t wanted = (4 * threads + panels_ - 1) / panels_;
    group_ =
        std::max<int64_t>((chunk_ + wanted - 1) / wanted, (kGroupRows + x_.pixels - 1) / x_.pixels);
    group_ = std::min({group_, chunk_, kGroupImages});
    const int64_t groups = (chunk_ + group_ - 1) / group_;
    const int team = static_cast<int>(std::min<int64_t>(threads, panels_ * groups));
    const int64_t blocks = (x_.channels + kBlock - 1) / kBlock;
    group_tiles_ = (group_ * x_.pixels + kRows - 1) / kRows;
    auto panels = buffer<E>(team * panel_size());
    auto states = buffer<float>(team * 4 * group_ * kernel_.width);
    auto packed = buffer<E>(direct_ ? 0 : groups * group_tiles_ * tile_size_);
#pragma omp parallel num_threads(team) if (team > 1)
    {
      const int me = thread_number();
      E* panel = panels.get() + me * panel_size();
      float* state = states.get() + me * 4 * group_ * kernel_.width;
      for (int64_t first = 0; first < x_.images; first += chunk_) {
        const int64_t images = std::min(chunk_, x_.images - first);
        const int64_t parts = (images + group_ - 1) / group_;
        if (!direct_) {
#pragma omp for schedule(dynamic, 1)
          for (int64_t t = 0; t < images * blocks; ++t)
            lay_out(first, images, t / blocks, t % blocks * kBlock, packed.get());
        }
        // panels inside: the threads work on neighbouring rows and share them in cache
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < panels_ * parts; ++t) {
          const int64_t g = t / panels_ * group_, n = std::min(group_, images - g);
          pool(first + g, n, t % panels_ * kernel_.width,
               packed.get() + t / panels_ * group_tiles_ * tile_size_, panel, state);
        }
      }
    }
  }

 private:
  int64_t panel_size() const { return depth_ * kernel_.width; }

  // Channels k0 ... k0 + kBlock of image b of a chunk.
  void lay_out(int64_t first, int64_t images, int64_t b, int64_t k0, E* packed) const {
    const int64_t k1 = std::min(k0 + kBlock, x_.channels), g = b / group_;
    E* out = packed + g * group_tiles_ * tile_size_;
    pack_image(x_, first + b, k0, k1, (b - g * group_) * x_.pixels, tile_size_, out);
    const int64_t rows = (std::min(images, (g + 1) * group_) - g * group_) * x_.pixels;
    if (b + 1 < images && (b + 1) % group_ != 0) return;
    constexpr int64_t kShare = std::is_same<E, Pair>::value ? 2 : 1;  // channels in an element
    for (int64_t row = rows; row % kRows != 0;
         ++row)  // the last tile may have rows that no image fills
      for (int64_t k = k0 / kShare; k < k1 / kShare; ++k)
        out[row / kRows * tile_size_ + k * kRows + row % kRows] = E{};
  }

  // Channels c0 ... of images first ... first + images.
  void pool(int64_t first, int64_t images, int64_t c0, const E* packed, E* panel,
            float* state) const {
    const int64_t width = kernel_.width, used = std::min(width, x_.channels - c0);
    kernel_.pack(u_ + c0 * depth_, x_.channels - c0, depth_, panel);
    for (int64_t b = 0; b < images; ++b) {
      const PoolState s = state_of(state, b);
      std::fill_n(s.pos, 2 * width, 0.0f);
      std::fill_n(s.pos_index, 2 * width, -1);
    }
    const int64_t rows = images * x_.pixels;
    TileTask<E> task;
    int64_t b = 0, p = 0;
    for (int64_t from = 0; from < rows; from += kRows) {
      task.rows = static_cast<int>(std::min<int64_t>(kRows, rows - from));
      for (int r = 0; r < kRows; ++r) {
        if (r >= task.rows) {
          task.row[r] = task.row[0];
          continue;
        }
        if (!direct_)
          task.row[r] = packed + from / kRows * tile_size_ + r;
        else
          task.row[r] = reinterpret_cast<const E*>(x_.data + (first + b) * x_.image_stride +
                                                   p * x_.pixel_stride);
        task.pixel[r] = static_cast<int32_t>(p);
        task.state[r] = state_of(state, b);
        if (++p == x_.pixels) p = 0, ++b;
      }
      kernel_.tile(task, !direct_, panel, depth_, block_);
    }
    for (int64_t i = 0; i < images; ++i) {
      const PoolState s = state_of(state, i);
      const int64_t at = (first + i) * x_.channels + c0;
      std::copy_n(s.pos, used, out_.pos + at);
      std::copy_n(s.neg, used, out_.neg + at);
      std::copy_n(s.pos_index, used, out_.pos_index + at);
      std::copy_n(s.neg_index, used, out_.neg_index + at);
    }
  }

  PoolState state_of(float* state, int64_t image) const {
    const int64_t width = kernel_.width;
    float* s = state + image * 4 * width;
    int32_t* index = reinterpret_cast<int32_t*>(s + 2 * width);
    return {s, s + width, index, index + width};
  }

  const Map<T>& x_;
  const E* u_;
  const PoolState out_;
  const TileKernel<E>& kernel_;
  const bool direct_;
  int64_t depth_ = 0, block_ = 0, panels_ = 0, chunk_ = 0, group_ = 0, group_tiles_ = 0,
          tile_size_ = 0;
};

}  // namespace

template <typename T>
void rotate_pool(const Map<T>& x, const float* u, float* pos, float* neg, int32_t* pos_index,
                 int32_t* neg_index, int threads, int isa) {
  const TileKernel<float>* kernel = float_tile(static_cast<Isa>(isa));
  if (kernel == nullptr) throw std::invalid_argument("rotate_pool: no such instructions here");
  const bool direct = std::is_same<T, float>::value && x.channel_stride == 1;
  Forward<T, float>(x, u, pos, neg, pos_index, neg_index, *kernel, direct).run(threads);
}

const char* tiles() {
  const TileKernel<float>* kernel = float_tile(Isa::kAuto);
  return kernel == nullptr ? "" : kernel->name;
}

bool has_pairs() { return pair_tile() != nullptr; }

void rotate_pool_pairs(const Map<BFloat16>& x, const BFloat16* u, float* pos, float* neg,
                       int32_t* pos_index, int32_t* neg_index, int threads) {
  const TileKernel<Pair>* kernel = pair_tile();
  if (kernel == nullptr) throw std::invalid_argument("rotate_pool: no AVX512-BF16 here");
  if (x.channels % 2) throw std::invalid_argument("rotate_pool: an odd number of channels");
  const bool even = (reinterpret_cast<std::uintptr_t>(x.data) & 3) == 0 &&
                    x.image_stride % 2 == 0 && x.pixel_stride % 2 == 0;
  Forward<BFloat16, Pair>(x, reinterpret_cast<const Pair*>(u), pos, neg, pos_index, neg_index,
                          *kernel, x.channel_stride == 1 && even)
      .run(threads);
}

template void rotate_pool<float>(const Map<float>&, const float*, float*, float*, int32_t*,
                                 int32_t*, int, int);
template void rotate_pool<BFloat16>(const Map<BFloat16>&, const float*, float*, float*, int32_t*,
                                    int32_t*, int, int);
template void rotate_pool<Float16>(const Map<Float16>&, const float*, float*, float*, int32_t*,
                                   int32_t*, int, int);

}  // namespace infodisent
