// Vectors of 64 bytes, whatever the machine's own width, and the exponential of one.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

#include "dtypes.h"
#include "parallel.h"

namespace infodisent {

// The compiler splits a vector where registers are shorter. Functions take them by reference: to
// pass one by value is another convention on every instruction set.
template <typename A>
struct Pack;
template <>
struct Pack<float> {
  typedef float values __attribute__((vector_size(64)));
  typedef int32_t integers __attribute__((vector_size(64)));
  typedef uint32_t words __attribute__((vector_size(64)));
  static constexpr int64_t lanes = 16;
};
template <>
struct Pack<double> {
  typedef double values __attribute__((vector_size(64)));
  typedef int64_t integers __attribute__((vector_size(64)));
  typedef uint64_t words __attribute__((vector_size(64)));
  static constexpr int64_t lanes = 8;
};

template <typename A>
constexpr A kNone = -std::numeric_limits<A>::infinity();

// v = `count` numbers, `stride` apart, and `fill` behind them.
template <typename T, typename A>
INFODISENT_INLINE void load(const T* from, int64_t stride, int64_t count, A fill,
                            typename Pack<A>::values& v) {
  constexpr int64_t kLanes = Pack<A>::lanes;
  A values[kLanes];
  if (count >= kLanes && stride == 1) {
    for (int64_t j = 0; j < kLanes; ++j) values[j] = widen(from[j]);
  } else {
    for (int64_t j = 0; j < kLanes; ++j) values[j] = j < count ? widen(from[j * stride]) : fill;
  }
  std::memcpy(&v, values, sizeof v);
}

template <typename A>
INFODISENT_INLINE void store(const typename Pack<A>::values& v, A* to, int64_t stride,
                             int64_t count) {
  constexpr int64_t kLanes = Pack<A>::lanes;
  if (count >= kLanes && stride == 1)
    std::memcpy(to, &v, sizeof v);
  else
    for (int64_t j = 0; j < kLanes && j < count; ++j) to[j * stride] = v[j];
}

// Every lane becomes the largest of all that are not NaN.
template <typename A>
INFODISENT_INLINE void spread(typename Pack<A>::values& v) {
  constexpr int64_t kLanes = Pack<A>::lanes;
  A values[kLanes];
  std::memcpy(values, &v, sizeof v);
  A largest = kNone<A>;
  for (int64_t j = 0; j < kLanes; ++j) largest = values[j] > largest ? values[j] : largest;
  v = typename Pack<A>::values{} + largest;
}

// The sum of all lanes, halves to halves.
template <typename A>
INFODISENT_INLINE A total(const typename Pack<A>::values& v) {
  constexpr int64_t kLanes = Pack<A>::lanes;
  A values[kLanes];
  std::memcpy(values, &v, sizeof v);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) values[j] += values[j + half];
  return values[0];
}

// x = exp(x) for x <= 0, NaN for NaN: at most 2 ulp off, and 0 below exp(-87) (exp(-708) for
// double), just before numbers get denormal. x = n ln 2 + r with |r| <= ln(2)/2; n appears in the
// low bits of x/ln 2 + 1.5·2^23 (2^52), and goes into an exponent; exp(r) is a polynomial.
INFODISENT_INLINE void exponential(Pack<float>::values& x) {
  using V = Pack<float>::values;
  using W = Pack<float>::words;
  const V shifted = x * 1.44269504f + 0x1.8p23f;
  W bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const V n = shifted - 0x1.8p23f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first short
  // interpolates (exp(r) - 1 - r) / r^2 at Chebyshev's points: 1e-8 of exp(r) off
  V p = r * 0x1.6d10fep-10f + 0x1.120b64p-7f;
  p = p * r + 0x1.55551ap-5f;
  p = p * r + 0x1.5554dep-3f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  bits = (bits + (127u - 0x4b400000u)) << 23;
  V power;
  std::memcpy(&power, &bits, sizeof power);
  x = x < -87.0f ? V{} : p * power;
}
INFODISENT_INLINE void exponential(Pack<double>::values& x) {
  using V = Pack<double>::values;
  using W = Pack<double>::words;
  const V shifted = x * 1.4426950408889634 + 0x1.8p52;
  W bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const V n = shifted - 0x1.8p52;
  const V r = (x - n * 0x1.62e42feep-1) - n * 1.90821492927058770002e-10;
  // the series: what is left out is below 1e-17 of exp(r)
  constexpr double kFactorials[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
  V p = V{} + kFactorials[0];
#pragma GCC unroll 12
  for (int k = 1; k < 12; ++k) p = p * r + kFactorials[k];
  p = p * (r * r) + r + 1.0;
  bits = (bits + (uint64_t{1023} - 0x4338000000000000)) << 52;
  V power;
  std::memcpy(&power, &bits, sizeof power);
  x = x < -708.0 ? V{} : p * power;
}

}  // namespace infodisent
