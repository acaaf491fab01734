// PIP-Net's alignment of two maps of scores: -log of what their softmaxes agree on, at every pixel.
#pragma once
#include <cstdint>

#include "softmax_pool.h"

namespace infodisent {

// What a pixel is remembered by; each array is [n, P]. With u = a - top_a and v = b - top_b,
//   sum_a = sum_m exp(u),  sum_b = sum_m exp(v),  sum_both = sum_m exp(u + v - top_both),
// top_a, top_b and top_both being the largest of a, b and u + v (0 if that is -Inf).
template <typename A>
struct Alignment {
  A *top_a, *sum_a, *top_b, *sum_b, *top_both, *sum_both;
};

// loss = -log sum_m softmax(a)_m softmax(b)_m
//      = log sum_a + log sum_b - log sum_both - top_both,   [n, P]
template <typename T>
void softmax_alignment(const Map<T>& a, const Map<T>& b, typename Wide<T>::type* loss,
                       const Alignment<typename Wide<T>::type>& statistics, int threads);

// da = grad (softmax(a) - softmax(a + b)), db likewise; one of them may be without data.
template <typename T>
void softmax_alignment_backward(const Map<T>& a, const Map<T>& b,
                                const typename Wide<T>::type* grad,  // [n, P]
                                const Alignment<const typename Wide<T>::type>& statistics,
                                const Target<typename Wide<T>::type>& da,
                                const Target<typename Wide<T>::type>& db, int threads);

}  // namespace infodisent
