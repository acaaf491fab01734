// rotate_pool, from its host function to its last store, against plain loops.
#include <algorithm>

#include "problems.h"

namespace infodisent {
namespace emulator {
namespace {

using namespace sm90;

struct Forward {
  int kind;
  Dtype dtype;
  bool exact;
  int cluster, images, pixels, channels, gap, processors;
};

Forward random_forward(int kind) {
  Forward f = {};
  f.kind = kind < 0 ? static_cast<int>(below(kTileKinds)) : kind;
  f.dtype = static_cast<Dtype>(below(4));
  f.exact = f.dtype == kFloat32Parts || (f.dtype != kFloat8 && below(3) == 0);
  if (f.dtype == kFloat16 && f.kind != kFlat) f.exact = false;
  f.pixels = is_flat(f.kind) ? one_of({1, 5, 50, 64, 192, 200, 256, 400}) : kTiles[f.kind].pixels;
  if (kTiles[f.kind].parts > 1)
    f.pixels = 1 + static_cast<int>(below(kTiles[f.kind].parts * kTiles[f.kind].columns));
  f.images = static_cast<int>(1 + below(f.pixels > 100 ? 4 : 11));
  const bool whole = f.dtype == kFloat16 ? f.kind == kFlat : f.dtype != kFloat8 && is_flat(f.kind);
  if (whole && below(12) == 0) {  // more than a packed key holds
    f.pixels = 1100;
    f.images = static_cast<int>(1 + below(2));
    f.exact = true;
  }
  f.channels = one_of({16, 48, 64, 128, 144, 192, 272, 448});
  f.gap = below(3) == 0 && f.images > 1 ? 1 + static_cast<int>(below(3)) : 0;
  f.cluster = f.gap && kTiles[f.kind].images > 1 ? 1 : static_cast<int>(1 + below(2));
  if (kTiles[f.kind].parts > 1) f.cluster = 1;
  f.processors = static_cast<int>(1 + below(7));
  return f;
}

// [C] of U times a row of the map.
void add_products(std::vector<float>& y, const std::vector<float>& u_transposed, const float* x) {
  const size_t channels = y.size();
  for (size_t k = 0; k < channels; ++k)
    for (size_t c = 0; c < channels; ++c) y[c] += u_transposed[k * channels + c] * x[k];
}

void check(const Forward& f) {
  std::snprintf(problem, sizeof problem,
                "forward %s dtype %d exact %d cluster %d B %d P %d C %d gap %d processors %d",
                kTiles[f.kind].name, f.dtype, f.exact, f.cluster, f.images, f.pixels, f.channels,
                f.gap, f.processors);
  runtime.processors = f.processors;
  const bool parts = f.dtype == kFloat32Parts;
  const size_t channels = f.channels, size = channels * channels, count = f.images * channels;
  const size_t element = f.dtype == kFloat8 ? 1 : 2;
  Map x(f.images, f.pixels, f.channels, f.gap, 3), x_low(x);
  x.spoil(!parts && f.dtype != kFloat8);
  std::vector<float> u(size), u_low(size);  // transposed
  for (float& value : u) value = below(3) ? 0.0f : integer(1);
  for (float& value : u_low) value = below(4) ? 0.0f : 1.0f;
  for (float& value : x_low.values) value = integer(1);

  Buffer<uint8_t> x_data(x.span() * element), x_low_data(x.span() * element);
  Buffer<uint8_t> u_data(size * element), u_low_data(size * element);
  x.write_to(x_data.data(), f.dtype);
  x_low.write_to(x_low_data.data(), f.dtype);
  for (size_t c = 0; c < channels; ++c)
    for (size_t k = 0; k < channels; ++k) {
      write(u_data.data(), c * channels + k, u[k * channels + c], f.dtype);
      write(u_low_data.data(), c * channels + k, u_low[k * channels + c], f.dtype);
    }
  Buffer<float> pos(count), neg(count), u_scale(channels), x_scale(f.images);
  Buffer<int32_t> pos_index(count), neg_index(count);
  Buffer<uint64_t> keys(f.exact ? 2 * count : count);  // of 4 bytes where packed
  for (size_t c = 0; c < channels; ++c) u_scale[c] = std::ldexp(1.0f, below(5) - 2);
  for (int b = 0; b < f.images; ++b) x_scale[b] = std::ldexp(1.0f, below(5) - 2);
  const Rows rows = {x_data.data(), parts ? x_low_data.data() : nullptr,
                     f.images,      f.pixels,
                     f.channels,    x.image_stride(),
                     f.channels};
  accept(rotate_pool(rows, f.dtype, u_data.data(), parts ? u_low_data.data() : nullptr, pos.data(),
                     neg.data(), pos_index.data(), neg_index.data(),
                     is_flat(f.kind) ? keys.data() : nullptr, {0, f.kind, f.cluster, f.exact},
                     nullptr, {u_scale.data(), x_scale.data()}));

  std::vector<float> y(channels);
  for (int b = 0; b < f.images; ++b) {
    std::vector<Pooled> wanted(channels, {0.0f, 0.0f, -1, -1});
    for (int p = 0; p < f.pixels; ++p) {
      std::fill(y.begin(), y.end(), 0.0f);
      add_products(y, u, x.row(b, p));
      if (parts) {
        add_products(y, u, x_low.row(b, p));
        add_products(y, u_low, x.row(b, p));
      }
      for (size_t c = 0; c < channels; ++c) {
        Pooled& pool = wanted[c];
        if (pool.pos != pool.pos) continue;
        if (y[c] != y[c]) pool = {NAN, NAN, p, p};
        if (y[c] > pool.pos) pool.pos = y[c], pool.pos_index = p;
        if (-y[c] > pool.neg) pool.neg = -y[c], pool.neg_index = p;
      }
    }
    for (size_t c = 0; c < channels; ++c) {
      const size_t at = b * channels + c;
      const float scale = f.dtype == kFloat8 ? u_scale[c] * x_scale[b] : 1.0f;
      if (!same(pos[at], wanted[c].pos * scale) || !same(neg[at], wanted[c].neg * scale) ||
          pos_index[at] != wanted[c].pos_index || neg_index[at] != wanted[c].neg_index)
        fail("a pool that is not that of the product");
    }
  }
}

}  // namespace

void forward(int kind) { check(random_forward(kind)); }

}  // namespace emulator
}  // namespace infodisent
