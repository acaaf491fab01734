// Scales of the float8 product of rotate_pool.cu. Integers and powers of two only, and nothing
// of CUDA, so that tests/cuda/rotate_pool_model.cpp runs these same functions on the CPU, and
// infodisent/backends/cuda/float8.py has the same in Python.
//
// e4m3 holds magnitudes up to 448 in steps of 2^-3 of their power of two, and below 2^-6 in steps
// of 2^-9. Every image of x and every row of U is multiplied by a power of two that takes its
// largest finite magnitude to 224 < m <= 448: powers of two are exact, so that rounding to e4m3 is
// the only loss, and no value saturates.
#pragma once
#include <cstdint>

#include "packed_key.h"

namespace infodisent {

constexpr int kFloat8Pixels = kPackedPixels;  // the float8 kernels round as the packed ones do

// 2^e, -126 <= e <= 120: what values were divided by before they were cast. `largest`: bits of the
// largest finite magnitude. Maps below 2^-118 keep the scale 2^-126 and lose precision.
INFODISENT_BOTH float float8_scale(uint32_t largest) {
  // largest = 1.f 2^(E - 127), to be at most 448 = 1.75 2^8
  const int32_t exponent = static_cast<int32_t>(largest >> 23) - 127 - 8;
  const int32_t e = larger(exponent + ((largest & 0x7fffff) > 0x600000 ? 1 : 0), -126);
  return float_of(static_cast<uint32_t>(e + 127) << 23);
}
// 1 / scale, which is exact.
INFODISENT_BOTH float float8_inverse(float scale) {
  return float_of((254u << 23) - bits_of(scale));
}

// Places do not change, as scales are positive; what underflows to 0 is nowhere, as any 0 is.
INFODISENT_BOTH Pooled scaled(Pooled pooled, float u_scale, float x_scale) {
  const float pos = pooled.pos * u_scale * x_scale, neg = pooled.neg * u_scale * x_scale;
  return {pos, neg, pos == 0.0f ? -1 : pooled.pos_index, neg == 0.0f ? -1 : pooled.neg_index};
}

}  // namespace infodisent
