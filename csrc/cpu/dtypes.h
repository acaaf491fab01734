// Element types of maps, and how they widen. Arithmetic is float, or double for double.
#pragma once
#include <cstdint>
#include <cstring>

namespace infodisent {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type that a map of T is computed in, and an integer as wide, so that a loop over both
// vectorises.
template <typename T>
struct Wide {
  using type = float;
  using index = int32_t;
};
template <>
struct Wide<double> {
  using type = double;
  using index = int64_t;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float widen(Float16 x) {
// not on Windows, where the function that widens without F16C is in no library that is linked
#if defined(__aarch64__) || (defined(__FLT16_MAX__) && !defined(_WIN32))
#ifdef __aarch64__  // where C++ has no _Float16 before GCC 13
  __fp16 value;
#else
  _Float16 value;
#endif
  std::memcpy(&value, &x.bits, sizeof value);
  return static_cast<float>(value);
#else
  // exponent and mantissa moved into place and scaled by 2^(127 - 15); Inf and NaN by hand
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof value);
  value *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((x.bits & 0x7c00u) == 0x7c00u) bits = 0x7f800000u | magnitude;
  bits |= static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

}  // namespace infodisent
