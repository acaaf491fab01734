// rotate_pool, its gradient, and the re-layout for those who multiply with a library.
#pragma once
#include <cstdint>

#include "dtypes.h"
#include "mx_pool.h"

namespace infodisent {

// Y[b, p] = U X[b, p], accumulated in float, and the pool of Y as in mx_pool.h, without Y: it
// exists a few rows and channels at a time, in registers. Beside its arguments it takes at most 8
// MiB (one image, where that is more) for X as the product reads it, and a panel of U for each
// thread. The result depends neither on the number of threads nor on the batch. `isa` as in
// rotate_pool_tiles.h; std::invalid_argument where the processor lacks it.
template <typename T>
void rotate_pool(const Map<T>& x,
                 const float* u,      // [C, C]
                 float* pos,          // [n, C]
                 float* neg,          // [n, C]
                 int32_t* pos_index,  // [n, C]
                 int32_t* neg_index,  // [n, C]
                 int threads, int isa);

// The first images of the same, at least one if there is any, by way of rotate_pool_screen.h, bit
// for bit what rotate_pool gives; returns how many. Takes at most 16 MiB (one image, where that is
// more) beside its arguments, and 1.5 panels of U for each thread. `isa`: a ScreenIsa.
template <typename T>
int64_t rotate_pool_screened(const Map<T>& x,
                             const float* u,      // [C, C]
                             float* pos,          // [n, C]
                             float* neg,          // [n, C]
                             int32_t* pos_index,  // [n, C]
                             int32_t* neg_index,  // [n, C]
                             int threads, int isa);

// The same as rotate_pool where U is bfloat16 too and C even, by instructions that multiply pairs
// of bfloat16 and add up in float. Denormals count as zero in them.
void rotate_pool_pairs(const Map<BFloat16>& x,
                       const BFloat16* u,   // [C, C]
                       float* pos,          // [n, C]
                       float* neg,          // [n, C]
                       int32_t* pos_index,  // [n, C]
                       int32_t* neg_index,  // [n, C]
                       int threads);

// What this processor has: the name of the best tile, empty where there is none; and one for pairs.
const char* tiles();
bool has_pairs();

// out[b * P + p][c] = x[b, p, c], widened: any layout to rows that one flat product can read.
template <typename T>
void rows(const Map<T>& x, typename Wide<T>::type* out /* [n * P, C] */, int threads);

// Winning pixels of `count` rows (channels, prototypes) in every image, and the gradients there:
// one side, or two. An index of -1 is no winner.
template <typename A>
struct Winners {
  int64_t count;
  const A* grad[2];         // [n, count] each
  const int32_t* index[2];  // the same; the second nullptr for one side
};

// du[c] (+)= sum over images and sides of grad[b, c] x[b, index[b, c]]; with `base`, of
// grad[b, c] (x[b, index[b, c]] - base[c]). x must have channel stride 1. Every row is summed by
// one thread in the order of the images: the result depends on nothing else.
template <typename T>
void grad_u(const Map<T>& x, const Winners<typename Wide<T>::type>& winners,
            const typename Wide<T>::type* base,  // [count, C] or nullptr
            typename Wide<T>::type* du,          // [count, C]
            bool accumulate, int threads);

// dx[b, p] (+)= sum of grad[b, c] u[c] over the rows c whose winner in image b is p; with `x`, of
// grad[b, c] (x[b, p] - u[c]).
template <typename A>
void grad_x(const A* u,  // [count, C]
            const Winners<A>& winners,
            const A* x,  // [n, P, C] or nullptr
            A* dx,       // [n, P, C]
            bool accumulate, int64_t images, int64_t pixels, int64_t channels, int threads);

}  // namespace infodisent
