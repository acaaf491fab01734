// similarity_pool: per prototype the best pixel of an image, by one or two similarities from one
// product, and its gradient.
#pragma once
#include <cstdint>

#include "mx_pool.h"

namespace infodisent {

enum class Similarity : int { kDot = 0, kCosine = 1, kL2 = 2 };

// What is asked for, and where it goes.
struct Matches {
  int views;  // 1 or 2
  Similarity similarity[2];
  float* value[2];    // [n, M]
  int32_t* index[2];  // [n, M]
};

// The best pixel p of every image for every row v of `prototypes`: largest x.v (kDot), largest
// x.v / (|x| |v|), 0 where a norm is 0 (kCosine), smallest |x - v|^2 (kL2), of the pixels where
// `valid` is not 0; ties go to the lowest. The product S = X V^T finds the winners, by the keys S,
// S / |x| and S - |x|^2 / 2; values of kCosine and kL2 are computed anew from the winner's own
// numbers. A distance within the error of the search is searched for again by differences, so that
// a pixel that equals a prototype has 0. An infinite pixel is infinitely far, a NaN wins always.
// The map of similarities does not exist. Results depend neither on threads nor on the batch.
// `isa` as in rotate_pool_tiles.h. `screen`, which changes no bit of the result: one view of
// kCosine or kL2 is screened by integers (similarity_pool_screen.h) 0 where it pays, 1 never, 2
// always, 3 always and with plain arithmetic.
template <typename T>
void similarity_pool(const Map<T>& x,
                     const float* prototypes,  // [M, C]
                     int64_t count,            // M
                     const uint8_t* valid,     // [n, P], at least one pixel of each; or nullptr
                     const Matches& matches, int threads, int isa, int screen = 0);

}  // namespace infodisent
