// What rotate_pool and its gradient need beside library matrix products and the pool.
#pragma once
#include <cstdint>

#include "dtypes.h"
#include "mx_pool.h"

namespace infodisent {

// out[b * P + p][c] = x[b, p, c], widened: any layout to rows that one flat product can read.
template <typename T>
void rows(const Map<T>& x, typename Wide<T>::type* out /* [n * P, C] */, int threads);

// du[c] (+)= sum_b grad_pos[b, c] x[b, pos_index[b, c]] + grad_neg[b, c] x[b, neg_index[b, c]],
// nothing where an index is -1. x must have channel stride 1. Every row is summed by one thread in
// the order of the images: the result depends on nothing else.
template <typename T>
void grad_u(
    const Map<T>& x,
    const typename Wide<T>::type* grad_pos,  // [n, C]
    const typename Wide<T>::type* grad_neg,  // [n, C]
    const int32_t* pos_index,                // [n, C]
    const int32_t* neg_index,                // [n, C]
    typename Wide<T>::type* du,              // [C, C]
    bool accumulate, int threads);

// dx[b, p] = sum of grad[b, c] u[c] over the channels c whose winner in image b is p.
template <typename A>
void grad_x(
    const A* u,                // [C, C]
    const A* grad_pos,         // [n, C]
    const A* grad_neg,         // [n, C]
    const int32_t* pos_index,  // [n, C]
    const int32_t* neg_index,  // [n, C]
    A* dx,                     // [n, P, C]
    int64_t images, int64_t pixels, int64_t channels, int threads);

}  // namespace infodisent
