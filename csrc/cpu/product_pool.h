// The main loop of rotate_pool and similarity_pool: what is laid out when, who multiplies what.
#pragma once
#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "parallel.h"
#include "rotate_pool_pack.h"
#include "rotate_pool_tiles.h"

namespace infodisent {

// Rows of X in use at a time, laid out for the tiles or as they are: they should stay in the
// last-level cache while every panel of U passes over them, and be enough to pay for packing the
// panels. Measured with 2 cores and 32 MiB of L3 (B = 64, C = 512 ... 2048): 1 MiB is 15 % slower
// at C = 2048, 4 to 16 MiB are equal.
inline constexpr int64_t kChunkBytes = 8 << 20;
// Rows that pay for packing a panel.
inline constexpr int64_t kGroupRows = 128;
// Most images of a task: the state of their pools is 1 KiB each.
inline constexpr int64_t kGroupImages = 1024;
// Channels that are laid out at a time; even.
inline constexpr int64_t kBlock = 128;

// Rows of a matrix times the pixels of images, and the pool of the result. `Epilogue` says what of
// the products is kept; it has
//
//   kEmpty                    the two values of a channel before the first product
//   Task<E>                   a TileTask with what it adds for each of its rows
//   counts(image, p)          whether a pixel takes part
//   place(task, r, image, p)  row r of the task is that pixel
//   multiply(kernel, task, …) the product, into task.state
//   sides()                   how many of the two values are results
template <typename T, typename E, typename Epilogue>
class ProductPool {
 public:
  ProductPool(const Map<T>& x, const E* u, int64_t rows, const PoolState& out,
              const TileKernel<E>& kernel, bool direct, const Epilogue& epilogue)
      : x_(x),
        u_(u),
        rows_(rows),
        out_(out),
        kernel_(kernel),
        direct_(direct),
        epilogue_(epilogue) {}

  void run(int threads) {
    if (x_.images == 0) return;
    depth_ = std::is_same<E, Pair>::value ? x_.channels / 2 : x_.channels;
    block_ = sum_block(x_.channels);
    panels_ = (rows_ + kernel_.width - 1) / kernel_.width;
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
    const int64_t width = kernel_.width, used = std::min(width, rows_ - c0);
    kernel_.pack(u_ + c0 * depth_, rows_ - c0, depth_, panel);
    for (int64_t b = 0; b < images; ++b) {
      const PoolState s = state_of(state, b);
      std::fill_n(s.pos, 2 * width, Epilogue::kEmpty);
      std::fill_n(s.pos_index, 2 * width, -1);
    }
    const int64_t rows = images * x_.pixels;
    typename Epilogue::template Task<E> task;
    task.rows = 0;
    int64_t b = 0, p = 0;
    for (int64_t row = 0; row < rows; ++row) {
      if (epilogue_.counts(first + b, p)) {
        const int r = task.rows++;
        task.row[r] = direct_ ? reinterpret_cast<const E*>(x_.data + (first + b) * x_.image_stride +
                                                           p * x_.pixel_stride)
                              : packed + row / kRows * tile_size_ + row % kRows;
        task.pixel[r] = static_cast<int32_t>(p);
        task.state[r] = state_of(state, b);
        epilogue_.place(task, r, first + b, p);
      }
      if (++p == x_.pixels) p = 0, ++b;
      if (task.rows < kRows && row + 1 < rows) continue;
      if (task.rows == 0) break;
      for (int r = task.rows; r < kRows; ++r) task.row[r] = task.row[0];
      epilogue_.multiply(kernel_, task, !direct_, panel, depth_, block_);
      task.rows = 0;
    }
    for (int64_t i = 0; i < images; ++i) {
      const PoolState s = state_of(state, i);
      const int64_t at = (first + i) * rows_ + c0;
      std::copy_n(s.pos, used, out_.pos + at);
      std::copy_n(s.pos_index, used, out_.pos_index + at);
      if (epilogue_.sides() < 2) continue;
      std::copy_n(s.neg, used, out_.neg + at);
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
  const E* u_;  // [rows, depth]
  const int64_t rows_;
  const PoolState out_;  // [n, rows] each
  const TileKernel<E>& kernel_;
  const bool direct_;
  const Epilogue& epilogue_;
  int64_t depth_ = 0, block_ = 0, panels_ = 0, chunk_ = 0, group_ = 0, group_tiles_ = 0,
          tile_size_ = 0;
};

}  // namespace infodisent
