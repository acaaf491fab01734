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
// x86 by hand: GCC does not vectorise its own conversion, which costs four times the time
#ifdef __aarch64__
  __fp16 value;
  std::memcpy(&value, &x.bits, sizeof value);
  return static_cast<float>(value);
#else
  // exponent and mantissa moved into place, the exponent's bias changed; 0, denormals, Inf and NaN
  // chosen without a branch and without arithmetic on denormals
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t exponent = x.bits & 0x7c00u, above = magnitude + (113u << 23);
  float small;
  std::memcpy(&small, &above, sizeof small);
  small -= 0x1p-14f;
  uint32_t bits;
  std::memcpy(&bits, &small, sizeof bits);
  bits = exponent == 0 ? bits : magnitude + (112u << 23);
  bits = exponent == 0x7c00u ? 0x7f800000u | magnitude : bits;
  bits |= static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

}  // namespace infodisent
