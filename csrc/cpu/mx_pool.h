// The sparse pool: both extremes of every channel of every image, and where they are.
#pragma once
#include <cstdint>

#include "dtypes.h"

namespace infodisent {

// A map of n images, P pixels, C channels anywhere in memory; strides count elements.
template <typename T>
struct Map {
  const T* data;
  int64_t images, pixels, channels;
  int64_t image_stride, pixel_stride, channel_stride;
};

// pos = max(0, max_p y), neg = max(0, max_p -y); index of the first pixel that reaches it, -1 where
// the value is 0. A NaN pixel makes both values NaN and is both locations (the first one counts).
template <typename T>
void mx_pool(const Map<T>& y,
             typename Wide<T>::type* pos,  // [n, C]
             typename Wide<T>::type* neg,  // [n, C]
             int32_t* pos_index,           // [n, C]
             int32_t* neg_index,           // [n, C]
             int threads);

}  // namespace infodisent
