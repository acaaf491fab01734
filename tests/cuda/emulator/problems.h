// Problems for the emulated kernels: memory around their tensors, numbers, and what all share.
#pragma once
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "machine.h"
#include "rotate_pool.h"

namespace infodisent {
namespace emulator {

// What runs, for reports.
inline char problem[240];

constexpr float kInf = std::numeric_limits<float>::infinity();

// An array that begins at a multiple of 64 bytes, filled with ones (NaN, and no index), between
// stretches that nobody may write.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : bytes_(count * sizeof(T)), all_(bytes_ + 2 * kGuard + 64, 0xa5) {
    const size_t begin = kGuard + 64 - reinterpret_cast<uintptr_t>(all_.data()) % 64;
    std::fill_n(all_.begin() + static_cast<long>(begin), bytes_, uint8_t{0xff});
    data_ = reinterpret_cast<T*>(all_.data() + begin);
  }
  ~Buffer() {
    const auto* const inside = reinterpret_cast<const uint8_t*>(data_);
    for (const uint8_t* at = all_.data(); at < all_.data() + all_.size(); ++at)
      if (*at != 0xa5 && (at < inside || at >= inside + bytes_)) fail("written beyond an array");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  static constexpr size_t kGuard = 1024;
  size_t bytes_;
  std::vector<uint8_t> all_;
  T* data_;
};

// Small integers, which every dtype here holds and every order adds up to the same.
inline float integer(int most) {
  return static_cast<float>(below(static_cast<uint32_t>(2 * most + 1))) - static_cast<float>(most);
}
inline uint16_t half_of(float value, bool is_float16) {
  if (!is_float16) return static_cast<uint16_t>(bits_of(value) >> 16);
  const __half half = __float2half_rn(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}
inline void write(void* to, size_t at, float value, sm90::Dtype dtype) {
  if (dtype == sm90::kFloat8)
    static_cast<uint8_t*>(to)[at] = __nv_fp8_e4m3(value).__x;
  else
    static_cast<uint16_t*>(to)[at] = half_of(value, dtype == sm90::kFloat16);
}
inline bool same(float a, float b) { return a == b || (a != a && b != b); }
inline void accept(const sm90::Status& status) {
  if (status.error != cudaSuccess) fail(std::string("refused: ") + status.where);
}

// A map of integers [images, pixels, channels] whose images have `gap` rows of NaN between them.
struct Map {
  int images, pixels, channels, gap;
  std::vector<float> values;
  Map(int images, int pixels, int channels, int gap, int most)
      : images(images), pixels(pixels), channels(channels), gap(gap) {
    values.resize(static_cast<size_t>(images) * pixels * channels);
    for (float& value : values) value = integer(most);
  }
  // At some places, what is not finite.
  void spoil(bool with_infinity) {
    if (below(3) != 0) return;
    for (int i = 0; i < 3; ++i)
      values[below(static_cast<uint32_t>(values.size()))] = !with_infinity || below(2) ? NAN
                                                            : below(2)                 ? kInf
                                                                                       : -kInf;
  }
  const float* row(int image, int pixel) const {
    return &values[(static_cast<size_t>(image) * pixels + pixel) * channels];
  }
  // Elements that the map spans; none behind its last row.
  size_t span() const {
    return (static_cast<size_t>(images - 1) * (pixels + gap) + pixels) * channels;
  }
  int64_t image_stride() const { return static_cast<int64_t>(pixels + gap) * channels; }
  void write_to(void* to, sm90::Dtype dtype) const {
    for (int b = 0; b < images; ++b)
      for (int p = 0; p < pixels; ++p)
        for (int c = 0; c < channels; ++c)
          write(to, b * image_stride() + static_cast<size_t>(p) * channels + c, row(b, p)[c],
                dtype);
  }
};

template <typename T, size_t N>
T one_of(const T (&choices)[N]) {
  return choices[below(N)];
}

// One random problem each; below zero: of any kind of tile.
void forward(int kind = -1);
void backward();
void cast();
void lay_out();
void split();
void host();  // errors, contexts, drivers

}  // namespace emulator
}  // namespace infodisent
