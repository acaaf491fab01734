// Softmax over the channels of every pixel, then the maximum over pixels; from two numbers a pixel.
#pragma once
#include <cstdint>

#include "buffer.h"
#include "mx_pool.h"

namespace infodisent {

// Scores of M prototypes at the pixels of a map: w = x + bias, the channels of x being the M.
// The probability of m at pixel p is s_mp = exp((w_mp - top_p) / T) / sum_p with
//   top_p = max_m w_mp,   sum_p = sum_m exp((w_mp - top_p) / T),
// so the differences are exact where they count, however large the scores are.
template <typename T>
struct Scores {
  using A = typename Wide<T>::type;
  Map<T> x;
  const A* bias;         // [M], T times that of the formula; nullptr for none
  A inverse;             // 1 / T
  const uint8_t* valid;  // [n, P], pixels that count are not 0; nullptr: all count
};

// value = max_p s_mp and the lowest pixel that has it. A pixel that counts and has a NaN or +Inf,
// or nothing but -Inf, has no softmax: its sum is NaN, and it is where every m of its image is,
// with the value NaN. -Inf, at pixel 0, where no pixel of an image counts.
template <typename T>
void softmax_pool(const Scores<T>& scores,
                  typename Wide<T>::type* value,  // [n, M]
                  int32_t* index,                 // [n, M]
                  typename Wide<T>::type* top,    // [n, P]
                  typename Wide<T>::type* sum,    // [n, P]
                  int threads);

// Where a gradient goes: numbers of x's wide type, strides in elements.
template <typename A>
struct Target {
  A* data;
  int64_t image_stride, pixel_stride, channel_stride;
};

// Before all of a target of n images is written.
template <typename A>
void prepare(const Target<A>& to, int64_t images, int64_t pixels, int64_t channels) {
  if (to.data != nullptr && to.image_stride == pixels * channels)
    prefer_huge_pages(to.data, images * to.image_stride * static_cast<int64_t>(sizeof(A)));
}

// dx_mp = s_mp / T · (g_m [p is m's pixel] - G_p),   G_p = sum of g_m value_m over the m of pixel
// p, in a scores' own units; exactly 0 at pixels that are nobody's. `dx` may be where x is. With
// `add` it joins what is there, which is left alone at those pixels.
template <typename T>
void softmax_pool_backward(const Scores<T>& scores,
                           const typename Wide<T>::type* grad,   // [n, M]
                           const typename Wide<T>::type* value,  // [n, M]
                           const int32_t* index,                 // [n, M]
                           const typename Wide<T>::type* top,    // [n, P]
                           const typename Wide<T>::type* sum,    // [n, P]
                           const Target<typename Wide<T>::type>& dx, bool add, int threads);

}  // namespace infodisent
