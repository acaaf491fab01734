// Maps whose pixels are contiguous, as convolutions leave them ([B, C, H, W]), laid out as rows of
// channels, which is what rotate_pool.h reads.
//
// The copy engine could bring such a map as the N-major operand of the product, without this copy,
// only where channels begin at multiples of 16 bytes: not for 49, 196 or 197 pixels of 2 bytes.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "rotate_pool.h"

namespace infodisent {
namespace sm90 {

// Pixels follow each other; strides count elements, and may be anything.
struct Planes {
  const void* data;  // [n, C, P] of 2 or 4 bytes
  int64_t images, pixels, channels;
  int64_t image_stride, channel_stride;
};
// out[b, p, c] = x[b, c, p], as bits. Channels are a multiple of 8. Launches on `stream` and does
// not wait.
Status channels_last(const Planes& x, int element_bytes,
                     void* out,  // [n, P, C], contiguous, at a multiple of 16 bytes
                     int device, cudaStream_t stream);

}  // namespace sm90
}  // namespace infodisent
