// The small kernels around the products, and what the host functions promise besides results.
#include "channels_last.h"
#include "float8.h"
#include "host.h"
#include "problems.h"

namespace infodisent {
namespace emulator {

using namespace sm90;

namespace {
float random_number() {
  switch (below(12)) {
    case 0:
      return below(2) ? kInf : -kInf;
    case 1:
      return NAN;
    case 2:
      return below(2) ? 0.0f : -0.0f;
    case 3:
      return (below(2) ? 1.0f : -1.0f) * 3.4028e38f;  // Inf as bfloat16
    default:
      return std::ldexp(static_cast<float>(below(1 << 24)) - (1 << 23), below(60) - 50);
  }
}
void write_floats(const Map& x, float* to) {
  for (int b = 0; b < x.images; ++b)
    std::memcpy(to + b * x.image_stride(), x.row(b, 0), sizeof(float) * x.pixels * x.channels);
}
float number(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }
}  // namespace

// to_float8: codes and scales, by the definition.
void cast() {
  const int images = static_cast<int>(1 + below(4)), pixels = one_of({1, 7, 50, 197});
  const int channels = one_of({16, 48, 272}), gap = below(2) && images > 1 ? 2 : 0;
  const Dtype dtype = one_of({kFloat16, kBFloat16, kFloat32Parts});
  std::snprintf(problem, sizeof problem, "cast dtype %d B %d P %d C %d gap %d", dtype, images,
                pixels, channels, gap);
  Map x(images, pixels, channels, gap, 0);
  for (float& value : x.values) {
    value = random_number();
    if (dtype != kFloat32Parts)
      value = number_of(half_of(value, dtype == kFloat16), dtype == kFloat16);
  }
  Buffer<uint8_t> data(x.span() * (dtype == kFloat32Parts ? 4 : 2));
  if (dtype == kFloat32Parts)
    write_floats(x, reinterpret_cast<float*>(data.data()));
  else
    x.write_to(data.data(), dtype);
  const size_t each = static_cast<size_t>(pixels) * channels;
  Buffer<uint8_t> codes(images * each);
  Buffer<uint32_t> largest(images);
  Buffer<float> scales(images);
  const Rows rows = {data.data(), nullptr, images, pixels, channels, x.image_stride(), channels};
  accept(to_float8(rows, dtype, codes.data(), largest.data(), scales.data(), 0, nullptr));
  for (int b = 0; b < images; ++b) {
    float most = 0.0f;
    for (size_t i = 0; i < each; ++i) {
      const float magnitude = std::fabs(x.row(b, 0)[i]);
      if (magnitude < kInf && magnitude > most) most = magnitude;
    }
    const float scale = float8_scale(bits_of(most));
    if (scales[b] != scale) fail("a scale");
    for (size_t i = 0; i < each; ++i) {
      const float value = x.row(b, 0)[i];
      const float wanted = std::fabs(value) < kInf ? value / scale : NAN;
      __nv_fp8_e4m3 found;
      found.__x = codes[b * each + i];
      if (!same(static_cast<float>(found), static_cast<float>(__nv_fp8_e4m3(wanted))))
        fail("a number as float8");
    }
  }
}

// channels_last: every element is where it belongs, from any address and with any stride.
void lay_out() {
  const int bytes = one_of({2, 4}), channels = one_of({8, 24, 64, 136, 272});
  const int pixels = one_of({1, 7, 49, 64, 196, 197, 300, 1100});
  const int images = static_cast<int>(1 + below(3)), prefix = static_cast<int>(below(3));
  const int gap = one_of({0, 0, 1, 5, 2000});
  std::snprintf(problem, sizeof problem, "channels_last bytes %d B %d P %d C %d prefix %d gap %d",
                bytes, images, pixels, channels, prefix, gap);
  const int64_t stride = prefix + pixels + gap, image_stride = channels * stride + below(2);
  const size_t count = static_cast<size_t>(images) * pixels * channels;
  const auto lay = [&](auto zero) {
    using T = decltype(zero);
    Buffer<T> x(images * image_stride), out(count);
    const auto at = [&](int b, int c, int p) -> T& {
      return x[b * image_stride + c * stride + prefix + p];
    };
    for (int b = 0; b < images; ++b)
      for (int c = 0; c < channels; ++c)
        for (int p = 0; p < pixels; ++p) at(b, c, p) = static_cast<T>(below(1 << 30));
    accept(channels_last({&at(0, 0, 0), images, pixels, channels, image_stride, stride}, bytes,
                         out.data(), 0, nullptr));
    for (int b = 0; b < images; ++b)
      for (int c = 0; c < channels; ++c)
        for (int p = 0; p < pixels; ++p)
          if (out[(static_cast<size_t>(b) * pixels + p) * channels + c] != at(b, c, p))
            fail("an element in another place");
  };
  if (bytes == 2)
    lay(uint16_t{0});
  else
    lay(uint32_t{0});
}

// split and split_rotation: both parts together are the number, to 2^-15, and none overflows.
void split() {
  const int images = static_cast<int>(1 + below(3)), pixels = one_of({1, 7, 50});
  const int channels = one_of({8, 40, 64}), gap = below(2) && images > 1 ? 2 : 0;
  std::snprintf(problem, sizeof problem, "split B %d P %d C %d gap %d", images, pixels, channels,
                gap);
  Map x(images, pixels, channels, gap, 0);
  for (float& value : x.values) value = random_number();
  Buffer<float> data(x.span()), u(static_cast<size_t>(channels) * channels);
  write_floats(x, data.data());
  const size_t count = x.values.size(), size = static_cast<size_t>(channels) * channels;
  for (size_t i = 0; i < size; ++i) u[i] = random_number();
  Buffer<uint16_t> high(count), low(count), u_high(size), u_low(size);
  const Rows rows = {data.data(), nullptr, images, pixels, channels, x.image_stride(), channels};
  accept(sm90::split(rows, high.data(), low.data(), 0, nullptr));
  accept(split_rotation(u.data(), u_high.data(), u_low.data(), channels, 0, nullptr));
  const auto check = [](float value, float high, float low, const char* what) {
    const bool finite = std::fabs(value) < kInf;
    const bool right =
        finite ? std::fabs(high) < kInf && std::fabs(low) < kInf &&
                     std::fabs(value - high - low) <= std::ldexp(std::fabs(value), -15) + 1e-37f
               : same(high, value);
    if (!right) fail(what);
  };
  for (size_t i = 0; i < count; ++i)
    check(x.values[i], number(high[i]), number(low[i]), "the parts of a map");
  for (size_t i = 0; i < size; ++i) {
    check(u[i], number(u_high[i]), number(u_low[i]), "the parts of U");
    if (u[i] == u[i] && ((number(u_low[i]) != 0.0f) != (u[i] != 0.0f)))
      fail("a low part of U is nothing");
  }
}

// What a call leaves behind, and what it says.
void host() {
  std::snprintf(problem, sizeof problem, "host");
  Buffer<float> u(64);
  Buffer<uint16_t> high(64), low(64);
  for (size_t i = 0; i < 64; ++i) u[i] = 1.0f;
  const auto call = [&] {
    return split_rotation(u.data(), high.data(), low.data(), 8, 0, nullptr);
  };
  const CUcontext others[] = {nullptr, reinterpret_cast<CUcontext>(0x20)};
  for (CUcontext other : others) {  // of the calling thread: none, or that of another device
    runtime.context = other;
    accept(call());
    if (runtime.context != other) fail("a call leaves another context behind");
  }
  runtime.last_error = cudaErrorInvalidValue;  // of an earlier call of somebody else
  if (call().error != cudaSuccess) fail("an error of an earlier call is reported as a launch's");
  if (cudaGetLastError() != cudaErrorInvalidValue) fail("an error of an earlier call is forgotten");
  runtime.can_launch = false;
  if (call().error != cudaErrorLaunchOutOfResources) fail("a launch that failed is not reported");
  runtime.can_launch = true;
}

}  // namespace emulator
}  // namespace infodisent
