// The winners of similarity_pool at the speed of 16-bit integers, where values are computed anew.
//
// As rotate_pool_screen.h: rows are rounded to integers and multiplied exactly, which bounds every
// key from below and above. A pixel whose upper bound lies below another one's lower bound cannot
// win. Mostly one is left and has won: its key is not needed. The keys of several are computed in
// float32, added up in the order of the float tiles; so places are those of the float tiles, ties
// and all. Where too much is left the tiles themselves do the work. With |x|^2 / 2 in the key all
// prototypes of a panel are rounded with one scale t, and the key is bounded as t times itself.
#pragma once
#include <cstdint>

#include "rotate_pool_screen.h"
#include "similarity_pool.h"

namespace infodisent {

// Images as rows.
struct PixelRows {
  const float* rows;     // [n, P, C]
  const float* square;   // [n, P], |row|^2
  const uint8_t* valid;  // [n, P] or nullptr
  int64_t images, pixels, channels;
};

// Whether `auto` screens a product of this size here.
bool similarity_screen_pays(int64_t images, int64_t pixels, int64_t channels, int64_t count);

// The winners by kCosine or kL2 as the float tiles find them, -1 where no key is above -Inf; and
// their keys, but 0 where the winner was plain without it: then the key is finite, unless no other
// pixel counts. std::invalid_argument where the processor lacks the instructions.
void similarity_screened(const PixelRows& x, const float* prototypes /* [M, C] */, int64_t count,
                         Similarity similarity, float* value /* [n, M] */,
                         int32_t* index /* [n, M] */, const TileKernel<float>& tile,
                         const ScreenKernel& screen, int threads);

}  // namespace infodisent
