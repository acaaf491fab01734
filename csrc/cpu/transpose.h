// Squares of 32-bit words across their diagonal, in registers.
#pragma once
#include <cstdint>
#include <utility>

#include "parallel.h"

namespace infodisent {

constexpr int kSquare = 16;
typedef uint32_t Words __attribute__((vector_size(4 * kSquare)));

// Row i becomes column i: interleaving row i with row i + n/2, four times.
INFODISENT_INLINE void transpose(Words* a) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define INFODISENT_SHUFFLE 1
#endif
#endif
#ifdef INFODISENT_SHUFFLE
  Words b[kSquare];
#pragma GCC unroll 4
  for (int stage = 0; stage < 4; ++stage) {
#pragma GCC unroll 8
    for (int i = 0; i < kSquare / 2; ++i) {
      const Words low = a[i], high = a[i + kSquare / 2];
      b[2 * i] = __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22,
                                         7, 23);
      b[2 * i + 1] = __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                             29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSquare; ++i) a[i] = b[i];
  }
#else
  for (int i = 0; i < kSquare; ++i)
    for (int j = 0; j < i; ++j) std::swap(a[i][j], a[j][i]);
#endif
}

}  // namespace infodisent
