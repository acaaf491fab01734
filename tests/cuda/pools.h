// Values that are hard on a pool, and what the contract says their pool is.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>

#include "model.h"
#include "packed_key.h"

namespace infodisent {
namespace model {

enum Values { kSmall, kSparse, kNegative, kRandom, kInfinite, kNaNs, kZeros };
constexpr int kValueKinds = 7;

inline float value_of(int kind) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float number = static_cast<float>(below(1 << 16)) / 4096.0f - 8.0f;
  switch (kind) {
    case kSmall:
      return static_cast<float>(below(5)) - 2.0f;  // ties
    case kSparse:
      return below(40) == 0 ? number : 0.0f;
    case kNegative:
      return -std::fabs(number);
    case kRandom:
      return number * std::ldexp(1.0f, static_cast<int>(below(40)) - 20);
    case kInfinite:
      return below(50) == 0 ? (below(2) ? infinity : -infinity) : number;
    case kNaNs:  // the tensor cores write this one; its sign is not relied on
      return below(60) == 0 ? float_of(0x7fffffffu | (below(2) ? kSign : 0)) : number;
    default:
      return below(2) ? 0.0f : -0.0f;
  }
}

// What the contract says of the values with their last bits cleared.
inline Pooled scanned(const float* y, int pixels, uint32_t mask) {
  Pooled pool = {0.0f, 0.0f, -1, -1};
  for (int p = 0; p < pixels; ++p) {
    if (y[p] != y[p]) return {y[p], y[p], p, p};
    const float v = float_of(bits_of(y[p]) & ~mask);
    if (v > pool.pos) {
      pool.pos = v;
      pool.pos_index = p;
    }
    if (-v > pool.neg) {
      pool.neg = -v;
      pool.neg_index = p;
    }
  }
  return pool;
}
inline void compare(const Pooled& ours, const Pooled& wanted, const char* where) {
  const bool nan = wanted.pos != wanted.pos;
  const bool values =
      nan ? ours.pos != ours.pos && ours.neg != ours.neg
          : bits_of(ours.pos) == bits_of(wanted.pos) && bits_of(ours.neg) == bits_of(wanted.neg);
  if (values && ours.pos_index == wanted.pos_index && ours.neg_index == wanted.neg_index) return;
  char text[200];
  std::snprintf(text, sizeof text, "%s: found %g %g at %d %d, wanted %g %g at %d %d", where,
                ours.pos, ours.neg, ours.pos_index, ours.neg_index, wanted.pos, wanted.neg,
                wanted.pos_index, wanted.neg_index);
  fail(text);
}

}  // namespace model
}  // namespace infodisent
