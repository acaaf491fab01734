// The gradient of U, from its host function to its last store, against plain loops.
#include "problems.h"
#include "rotate_pool_backward.h"

namespace infodisent {
namespace emulator {

using namespace sm90;

void backward() {
  const Dtype dtype = below(2) ? kFloat16 : kBFloat16;
  const int pixels = one_of({1, 7, 16, 31, 49, 49, 65, 144, 196, 197});
  const auto images = static_cast<int>(1 + below(pixels > 100 ? 3 : 7));
  const int channels = one_of({8, 72, 128, 136, 256, 264, 384});
  const int gap = below(2) && images > 1 ? 1 + static_cast<int>(below(3)) : 0;
  const auto cluster = static_cast<int>(1 + below(2)), splits = static_cast<int>(1 + below(images));
  const bool half_out = below(2) != 0;
  runtime.processors = static_cast<int>(1 + below(7));
  std::snprintf(problem, sizeof problem,
                "dU dtype %d cluster %d splits %d half %d B %d P %d C %d gap %d processors %d",
                dtype, cluster, splits, half_out, images, pixels, channels, gap,
                runtime.processors);
  Map x(images, pixels, channels, gap, 2);
  x.spoil(true);
  bool all_finite = gap == 0;
  for (float value : x.values) all_finite = all_finite && std::fabs(value) < kInf;
  const size_t count = static_cast<size_t>(images) * channels;
  const size_t size = static_cast<size_t>(channels) * channels;
  Buffer<uint16_t> x_data(x.span());
  // rows between images may be multiplied by zeros: where they are finite, nothing is computed
  // again
  if (below(2))
    for (size_t i = 0; i < x.span(); ++i) x_data[i] = half_of(integer(2), dtype == kFloat16);
  x.write_to(x_data.data(), dtype);
  Buffer<float> grads[2] = {Buffer<float>(count), Buffer<float>(count)};
  Buffer<int32_t> places[2] = {Buffer<int32_t>(count), Buffer<int32_t>(count)};
  for (size_t i = 0; i < count; ++i) {
    for (int side = 0; side < 2; ++side) {
      places[side][i] = static_cast<int>(below(static_cast<uint32_t>(pixels) + 1)) - 1;
      grads[side][i] = integer(3);
    }
    if (below(6) == 0) places[1][i] = places[0][i];
    if (below(6) == 0) places[0][i] = pixels - 1;  // beside the next image
    for (int side = 0; side < 2; ++side)
      if (places[side][i] < 0) grads[side][i] = NAN;  // what stands there does not matter
  }
  const bool overflow = below(4) == 0;
  if (overflow)
    for (int c = 0; c < channels; ++c) grads[0][c] = kInf;
  Buffer<float> parts(splits > 1 ? splits * size : 0), scales(channels);
  Buffer<uint8_t> out(size * (half_out ? 2 : 4));
  const Rows rows = {x_data.data(), nullptr, images, pixels, channels, x.image_stride(), channels};
  const long before = loads;
  accept(grad_u(rows, dtype, grads[0].data(), grads[1].data(), places[0].data(), places[1].data(),
                out.data(), splits > 1 ? parts.data() : nullptr,
                dtype == kFloat16 ? scales.data() : nullptr, {0, cluster, splits, half_out},
                nullptr));

  // What an overflow makes of its rows is not formed again, 64 sums a thread.
  const int64_t tiles = (channels + 127) / 128 * cluster * ((channels + 255) / 256);
  if (overflow && all_finite && loads - before > tiles * 256 * 24 * (images + 2 * splits))
    fail("what has overflowed is added up again");

  std::vector<float> wanted(size, 0.0f);
  for (int b = 0; b < images; ++b)
    for (int c = 0; c < channels; ++c)
      for (int side = 0; side < 2; ++side) {
        const size_t at = static_cast<size_t>(b) * channels + c;
        if (places[side][at] < 0) continue;
        const float* const row = x.row(b, places[side][at]);
        for (int k = 0; k < channels; ++k)
          wanted[static_cast<size_t>(c) * channels + k] += grads[side][at] * row[k];
      }
  for (size_t i = 0; i < size; ++i) {
    float found;
    if (half_out)
      found = number_of(reinterpret_cast<const uint16_t*>(out.data())[i], dtype == kFloat16);
    else
      std::memcpy(&found, out.data() + 4 * i, 4);
    const bool neither = std::fabs(found) < kInf || std::fabs(wanted[i]) < kInf;
    if (!same(found, wanted[i]) && (!overflow || neither))
      fail("a gradient that is not the sum over the winners");
  }
}

}  // namespace emulator
}  // namespace infodisent
