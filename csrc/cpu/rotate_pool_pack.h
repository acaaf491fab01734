// Rows of X as the tiles of rotate_pool read them.
#pragma once
#include <cstdint>

#include "mx_pool.h"
#include "rotate_pool_tiles.h"

namespace infodisent {

// Writes channels k0 ... k1 of one image, widened, to out[row / kRows * tile + k * kRows +
// row % kRows], where row = row0 + pixel: kRows rows side by side make a tile.
template <typename T>
void pack_image(const Map<T>& x, int64_t image, int64_t k0, int64_t k1, int64_t row0, int64_t tile,
                float* out);

// Two neighbouring channels to a word: k counts channels and is even, `out` has half as many.
void pack_image(const Map<BFloat16>& x, int64_t image, int64_t k0, int64_t k1, int64_t row0,
                int64_t tile, Pair* out);

}  // namespace infodisent
