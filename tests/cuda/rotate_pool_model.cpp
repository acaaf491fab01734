// What csrc/sm90/rotate_pool_kernel.cuh is made of that holds nothing of CUDA (packed_key.h,
// tile_schedule.h, float8.h) against plain loops, on every value and size that is hard on it.
// Prints "clean", or what is wrong and exits 1. The kernel as a whole: emulator/.
#include <cmath>
#include <cstdio>
#include <vector>

#include "float8.h"
#include "model.h"
#include "packed_key.h"
#include "pools.h"
#include "tile_cost.h"
#include "tile_schedule.h"

using namespace infodisent;
using namespace infodisent::model;

namespace {

// --- the epilogue ---

// D [16, N] of one warp as its lanes hold it.
template <int N>
struct Fragment {
  float d[32][N / 2];
  void load(const std::vector<float>& matrix) {
    for (int lane = 0; lane < 32; ++lane)
      for (int j = 0; j < N / 8; ++j)
        for (int h = 0; h < 2; ++h)
          for (int e = 0; e < 2; ++e)
            d[lane][4 * j + 2 * h + e] =
                matrix[(lane / 4 + 8 * h) * N + 8 * j + 2 * (lane % 4) + e];
  }
};

// What the four lanes of a row have, merged as the shuffles do.
template <typename F>
auto across(int row, F find) {
  const int first = row % 8 * 4;
  auto all = find(first, 0);
  for (int lane = 1; lane < 4; ++lane) all = merged(all, find(first + lane, lane));
  return all;
}

template <int KIND>
void tile_of_images() {
  constexpr int N = kTiles[KIND].columns, IMAGES = kTiles[KIND].images, HW = kTiles[KIND].pixels;
  static Fragment<N> fragment;
  std::vector<float> matrix(16 * N);
  const auto verify = [&](const char* where) {
    fragment.load(matrix);
    for (int row = 0; row < 16; ++row)
      for (int image = 0; image < IMAGES; ++image) {
        const float* y = &matrix[row * N + image * HW];
        const Keys keys = across(row, [&](int thread, int lane) {
          return keys_of_image<N, HW>(fragment.d[thread], row / 8, image, lane, ~mask_of(HW));
        });
        const Sides sides = sides_of(keys.largest, keys.smallest);
        compare(unpacked(sides, mask_of(HW)), scanned(y, HW, mask_of(HW)), where);
        const Extremes extremes = across(row, [&](int thread, int lane) {
          return extremes_of_image<N, HW>(fragment.d[thread], row / 8, image, lane);
        });
        compare(pooled(extremes), scanned(y, HW, 0), where);
      }
  };
  for (int kind = 0; kind < kValueKinds; ++kind)
    for (int repeat = 0; repeat < 40; ++repeat) {
      for (float& v : matrix) v = value_of(kind);
      verify(kTiles[KIND].name);
    }
  // every pixel of every image alone, beside columns of nothing that hold anything
  const float extremes[] = {1.5f, -1.5f, float_of(0x7fffffffu), float_of(kInfinity)};
  for (int column = 0; column < IMAGES * HW; ++column)
    for (float extreme : extremes) {
      for (float& v : matrix) v = below(2) ? 0.25f : -0.25f;
      for (int row = 0; row < 16; ++row) {
        matrix[row * N + column] = extreme;
        for (int c = IMAGES * HW; c < N; ++c)
          matrix[row * N + c] = c % 2 ? float_of(0x7fffffffu) : -float_of(kInfinity);
      }
      verify(kTiles[KIND].name);
    }
}

// pitch: rows from image to image, 0 for none.
template <int KIND>
void flat(int images, int pixels, int pitch) {
  constexpr int N = kTiles[KIND].columns;
  const Layout layout = layout_of(KIND, images, pixels, pitch);
  const uint32_t mask = mask_of(pixels);
  static Fragment<N> fragment;
  for (int kind = 0; kind < kValueKinds; ++kind) {
    std::vector<float> y(static_cast<size_t>(images) * pixels * 16);  // [images, 16 rows, pixels]
    for (float& v : y) v = value_of(kind);
    std::vector<int32_t> keys(2 * 16 * images, 0);
    std::vector<uint64_t> wide(2 * 16 * images, 0);
    for (int n = 0; n < layout.tiles; ++n) {
      // the columns as the copy engine brings them: rows of the map, those between images too (NaN,
      // and Inf), zeros beyond
      const int row0 = n % layout.blocks * layout.row_step, map = n / layout.blocks;
      std::vector<float> matrix(16 * N, 0.0f);
      for (int c = 0; c < N; ++c) {
        const int at = row0 + c;
        const int image = layout.rows ? at / pitch : map, pixel = layout.rows ? at % pitch : at;
        if (image >= images || (!layout.rows && pixel >= pixels)) continue;
        for (int row = 0; row < 16; ++row)
          matrix[row * N + c] = pixel < pixels ? y[(image * 16 + row) * pixels + pixel]
                                : c % 2        ? float_of(0x7fffffffu)
                                               : -float_of(kInfinity);
      }
      fragment.load(matrix);
      const Run run = run_of(n, images, N, layout);
      int shift = run.pixel;
      for (int i = 0; i < run.images; ++i, shift -= pitch)
        for (int row = 0; row < 16; ++row) {
          const Keys packed_keys = across(row, [&](int thread, int lane) {
            return keys_of_run<N>(fragment.d[thread], row / 8, lane, shift, pixels, mask);
          });
          const Extremes exact = across(row, [&](int thread, int lane) {
            return extremes_of_run<N>(fragment.d[thread], row / 8, lane, shift, pixels);
          });
          const int to = (run.image + i) * 16 + row, other = to + 16 * images;
          check(run.image + i < images, "an image too many");
          const Sides sides = sides_of(packed_keys.largest, packed_keys.smallest);
          keys[to] = larger(keys[to], static_cast<int32_t>(sides.pos));
          keys[other] = larger(keys[other], static_cast<int32_t>(sides.neg));
          const Sides whole = sides_of(exact.largest, exact.smallest);
          wide[to] = larger(wide[to], wide_key(whole.pos, exact.at_largest));
          wide[other] = larger(wide[other], wide_key(whole.neg, exact.at_smallest));
        }
    }
    for (int i = 0; i < 16 * images; ++i) {
      const Sides sides = {static_cast<uint32_t>(keys[i]),
                           static_cast<uint32_t>(keys[i + 16 * images])};
      compare(unpacked(sides, mask), scanned(&y[static_cast<size_t>(i) * pixels], pixels, mask),
              "flat");
      compare(unpacked(wide[i], wide[i + 16 * images]),
              scanned(&y[static_cast<size_t>(i) * pixels], pixels, 0), "flat, whole values");
    }
  }
}

// Parts of an image by blocks that send each other what they have.
template <int KIND>
void parts(int pixels) {
  constexpr int N = kTiles[KIND].columns, PARTS = kTiles[KIND].parts;
  const uint32_t mask = mask_of(pixels);
  static Fragment<N> fragment;
  for (int kind = 0; kind < kValueKinds; ++kind) {
    std::vector<float> y(16 * static_cast<size_t>(pixels));
    for (float& v : y) v = value_of(kind);
    std::vector<Keys> keys(16, {0, 0});
    std::vector<Extremes> extremes(16, kNothing);
    for (int part = 0; part < PARTS; ++part) {
      std::vector<float> matrix(16 * N, 0.0f);  // zeros beyond the image
      for (int row = 0; row < 16; ++row)
        for (int c = 0; c < N && part * N + c < pixels; ++c)
          matrix[row * N + c] = y[static_cast<size_t>(row) * pixels + part * N + c];
      fragment.load(matrix);
      for (int row = 0; row < 16; ++row) {
        keys[row] = merged(keys[row], across(row, [&](int thread, int lane) {
                             return keys_of_run<N>(fragment.d[thread], row / 8, lane, part * N,
                                                   pixels, mask);
                           }));
        extremes[row] =
            merged(extremes[row], across(row, [&](int thread, int lane) {
                     return extremes_of_run<N>(fragment.d[thread], row / 8, lane, part * N, pixels);
                   }));
      }
    }
    for (int row = 0; row < 16; ++row) {
      const float* const values = &y[static_cast<size_t>(row) * pixels];
      const Sides sides = sides_of(keys[row].largest, keys[row].smallest);
      compare(unpacked(sides, mask), scanned(values, pixels, mask), "parts");
      compare(pooled(extremes[row]), scanned(values, pixels, 0), "parts, whole values");
    }
  }
}

// --- the schedule ---

void covered_once(int kind, int images, int pixels, int channels, int pitch, int cluster,
                  int processors, int element_bytes) {
  const Layout layout = layout_of(kind, images, pixels, pitch);
  const int rows = kTiles[kind].channels;
  const int groups = channel_groups(channels, cluster, rows), units = groups * layout.tiles;
  const int clusters = smaller(units, larger(1, processors / cluster));
  const int down = channel_groups(channels, 1, rows);
  const uint32_t steps = (channels + block_k(element_bytes) - 1) / block_k(element_bytes),
                 stages = kTiles[kind].stages;
  std::vector<int> seen(static_cast<size_t>(down) * layout.tiles, 0);
  for (int c = 0; c < clusters; ++c) {
    for (int rank = 0; rank < cluster; ++rank) {
      Slot slot = {0, 0};  // the producer's
      uint32_t first_step[kGroups] = {0, steps};
      int turn = 0;
      for (int unit = c; unit < units; unit += clusters, ++turn) {
        check(unit == unit_of(turn, c, clusters), "turns");
        const Slot read = Slot::at(first_step[turn % kGroups], stages);
        check(read.stage == slot.stage && read.parity == slot.parity,
              "a warpgroup begins at another slot than the producer");
        first_step[turn % kGroups] += kGroups * steps;
        for (uint32_t step = 0; step < steps; ++step) slot.advance(stages);
        const Work work = work_of(unit, groups, cluster, rank);
        const Work other = work_of(unit, groups, cluster, 0);
        check(work.n == other.n && work.m == other.m + rank, "a pair must share its pixels");
        check(work.n >= 0 && work.n < layout.tiles, "a tile beyond the map");
        if (work.m < down) ++seen[static_cast<size_t>(work.m) * layout.tiles + work.n];
      }
    }
  }
  for (int count : seen) check(count == 1, "a tile is computed more or less than once");
  // every pixel is in one column of one tile
  std::vector<int> columns(static_cast<size_t>(images) * pixels, 0);
  for (int n = 0; n < layout.tiles; ++n) {
    const int row = n % layout.blocks * layout.row_step;
    const int image = n / layout.blocks * layout.image_step;
    const int side_by_side = kTiles[kind].images;
    if (is_flat(kind)) {
      const Run run = run_of(n, images, kTiles[kind].columns, layout);
      for (int i = 0; i < run.images; ++i)
        for (int c = 0; c < kTiles[kind].columns; ++c) {
          const int pixel = c + run.pixel - i * pitch;
          if (pixel < 0 || pixel >= pixels) continue;
          ++columns[static_cast<size_t>(run.image + i) * pixels + pixel];
          const int64_t step = layout.rows ? pitch : pixels;
          const int64_t at = layout.rows ? row + c : image * step + row + c;
          check(at == (run.image + i) * step + pixel, "another pixel");
        }
    } else {
      check((layout.rows ? row / pixels : image) == n * side_by_side, "another image");
      for (int i = n * side_by_side; i < smaller(images, (n + 1) * side_by_side); ++i)
        for (int p = 0; p < pixels; ++p) ++columns[static_cast<size_t>(i) * pixels + p];
    }
  }
  for (int count : columns) check(count == 1, "a pixel is in more or less than one tile");
}

void schedule() {
  for (int channels : {8, 64, 128, 192, 512, 768, 1024, 1536, 2048})
    for (int processors : {1, 2, 7, 131, 132})
      for (int cluster : {1, 2})
        for (int images = 1; images <= 70; images += images < 8 || processors == 132 ? 1 : 9)
          for (int kind = 0; kind < kTileKinds; ++kind) {
            const int parts = kTiles[kind].parts;
            if (parts > 1 && cluster > 1) continue;
            const int pixels = parts > 1       ? parts * kTiles[kind].columns - 15
                               : is_flat(kind) ? (images % 2 ? 577 : 50)
                                               : kTiles[kind].pixels;
            if (images > 20 && pixels > 150 && images % 7) continue;
            covered_once(kind, images, pixels, channels, pixels, cluster, processors,
                         1 + images % 2);
            for (int pitch : {0, pixels + 1, 2 * pixels})
              covered_once(kind, images, pixels, channels, pitch, cluster, processors, 2);
            const int steps = (channels + 63) / 64;
            const cost::Problem problem = {images, pixels, channels, pixels, steps};
            check(serves(cost::choose_tile(problem, processors), pixels), "a tile of other pixels");
          }
  for (const TileShape& tile : kTiles) {
    TileShape more = tile;
    ++more.stages;
    check(shared_bytes(tile) <= kSharedLimit, "shared memory");
    check(shared_bytes(more) > kSharedLimit || tile.stages >= 6, "room for one more slot");
    check(slot_rows(tile.columns) % 16 == 0 && slot_rows(tile.columns) >= tile.columns, "halves");
  }
}

// --- operands in shared memory ---

// Of elements of BYTES bytes.
template <int BYTES>
void operands() {
  constexpr int BLOCK_K = block_k(BYTES), PART = kPartBytes / BYTES;
  static_assert(PART == (BYTES == 2 ? 16 : 32), "m64nNk16 of 2 bytes, m64nNk32 of 1");
  for (const TileShape& tile : kTiles)
    for (int cluster : {1, 2}) {
      // slot 2 of a ring at 3072
      const uint32_t base = 3 * 1024 + 2 * slot_bytes(tile.channels, tile.columns);
      const uint32_t x = base + tile.channels * kRowBytes;
      const int products = tile.channels / 64, part = tile.channels / tile.parts;
      check(base % 1024 == 0 && x % 1024 == 0, "groups of 8 rows begin at multiples of 1024");
      std::vector<int> memory((x + slot_rows(tile.columns) * kRowBytes) / BYTES, -1);  // elements
      const auto copy = [&](uint32_t to, int first, int rows, int operand) {
        for (int row = 0; row < rows; ++row)
          for (int k = 0; k < BLOCK_K; ++k)
            memory[swizzled(to + row * 128 + k * BYTES) / BYTES] =
                operand << 20 | (first + row) << 8 | k;
      };
      for (int rank = tile.parts - 1; rank >= 0; --rank)
        copy(base + rank * part * kRowBytes, rank * part, part, 1);
      if (cluster == 1) {
        copy(x, 0, tile.columns, 2);
      } else {
        const int half = slot_rows(tile.columns) / 2;
        for (int rank : {1, 0}) copy(x + rank * half_bytes(tile.columns), rank * half, half, 2);
      }
      int read = 0;  // parts of K, which together must be all of it
      for (int k = 0; k < kRowBytes / kPartBytes; ++k, read += PART)
        for (int m = 0; m <= products; ++m) {  // rows of U, 64 each; x
          const uint64_t descriptor = m < products ? descriptor_of(base) + descriptor_step(m, k)
                                                   : descriptor_of(x) + descriptor_step(0, k);
          const uint32_t start = (descriptor & 0x3fff) << 4;
          const uint32_t stride = (descriptor >> 32 & 0x3fff) << 4;
          check(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "fields of a descriptor");
          for (int row = 0; row < (m < products ? 64 : tile.columns); ++row)
            for (int i = 0; i < PART; ++i) {
              const uint32_t at = swizzled(start + row / 8 * stride + row % 8 * 128 + i * BYTES);
              const int wanted =
                  (m < products ? 1 << 20 | (64 * m + row) << 8 : 2 << 20 | row << 8) |
                  (PART * k + i);
              check(memory[at / BYTES] == wanted, "a product reads another element");
            }
        }
      check(read == BLOCK_K, "a slot is not read to its end");
    }
}

// --- the scales of float8 ---

// Beside the definition: the least power of two that takes `largest` to 448 or below.
void float8_scales() {
  for (uint32_t exponent = 0; exponent < 255; ++exponent)
    for (uint32_t fraction : {0u, 1u, 0x5fffffu, 0x600000u, 0x600001u, 0x7fffffu, below(1 << 23)}) {
      const uint32_t bits = exponent << 23 | fraction;
      const double largest = float_of(bits);
      const float scale = float8_scale(bits), inverse = float8_inverse(scale);
      int power = 0;
      check(std::frexp(scale, &power) == 0.5f, "a scale is a power of two");
      check(static_cast<double>(scale) * inverse == 1.0, "the inverse of a scale");
      check(largest * inverse <= 448.0, "a value saturates");
      check(largest * inverse > 224.0 || scale == std::ldexp(1.0f, -126), "half of the range");
    }
}

// Scales after the pool are those of the rows and images before it.
void float8_pool() {
  const int pixels = 49;
  const uint32_t mask = mask_of(pixels);
  for (int kind = 0; kind < kValueKinds; ++kind)
    for (int repeat = 0; repeat < 200; ++repeat) {
      const float u_scale = std::ldexp(1.0f, static_cast<int>(below(40)) - 20);
      const float x_scale = std::ldexp(1.0f, static_cast<int>(below(40)) - 20);
      float y[pixels], after[pixels];
      Keys keys = {0, 0};
      for (int p = 0; p < pixels; ++p) {
        y[p] = value_of(kind);
        // what is cleared goes first, since the product is what is packed
        after[p] = y[p] != y[p] ? y[p] : float_of(bits_of(y[p]) & ~mask) * u_scale * x_scale;
        add(keys, packed(bits_of(y[p]), low_bits(p, mask), ~mask));
      }
      const Pooled pool = unpacked(sides_of(keys.largest, keys.smallest), mask);
      compare(scaled(pool, u_scale, x_scale), scanned(after, pixels, 0), "float8");
    }
  const Pooled tiny = scaled({1.0f, 2.0f, 3, 4}, std::ldexp(1.0f, -126), std::ldexp(1.0f, -126));
  check(tiny.pos == 0.0f && tiny.pos_index == -1 && tiny.neg == 0.0f && tiny.neg_index == -1,
        "what underflows is nowhere");
}

}  // namespace

int main() {
  tile_of_images<0>();
  tile_of_images<1>();
  tile_of_images<2>();
  tile_of_images<3>();
  tile_of_images<4>();
  tile_of_images<5>();
  tile_of_images<7>();
  tile_of_images<8>();
  for (int pixels : {1, 7, 48, 50, 64, 65, 192, 256, 257, 576, 577, 1024})
    for (int images : {1, 2, 3, 5, 9})
      for (int pitch : {0, pixels, pixels + 1, pixels + 200}) {
        flat<kFlat>(images, pixels, pitch);
        flat<9>(images, pixels, pitch);
      }
  for (int pixels : {1, 15, 16, 17, 49, 63, 64}) parts<10>(pixels);
  for (int pixels : {1, 56, 64, 144, 196, 197, 224}) parts<11>(pixels);
  schedule();
  operands<2>();
  operands<1>();
  float8_scales();
  float8_pool();
  std::printf("clean\n");
}
