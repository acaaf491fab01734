// A panel of U: some rows side by side, as the tiles read them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "parallel.h"
#include "transpose.h"

namespace infodisent {

// panel[k * kWidth + j] = u[j][k], 0 beyond the last channel.
template <int kWidth, typename E>
INFODISENT_INLINE void pack_panel(const E* u, int64_t channels, int64_t depth, E* panel) {
  static_assert(sizeof(E) == sizeof(uint32_t) && kWidth % 8 == 0, "words of 32 bits");
  const int width = static_cast<int>(std::min<int64_t>(kWidth, channels));
  int64_t done = 0;
  if (kWidth % kSquare == 0 && width == kWidth) {
    for (; done + kSquare <= depth; done += kSquare)
      for (int c = 0; c < kWidth; c += kSquare) {
        Words square[kSquare];
#pragma GCC unroll 16
        for (int i = 0; i < kSquare; ++i)
          std::memcpy(&square[i], u + (c + i) * depth + done, sizeof(Words));
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kSquare; ++i)
          std::memcpy(panel + (done + i) * kWidth + c, &square[i], sizeof(Words));
      }
  }
  for (; done < depth; ++done)
    for (int j = 0; j < kWidth; ++j)
      panel[done * kWidth + j] = j < width ? u[j * depth + done] : E{};
}

}  // namespace infodisent
