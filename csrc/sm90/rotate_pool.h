// rotate_pool, forward, on Hopper GPUs (compute capability 9.0). Pointers are device memory.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace infodisent {
namespace sm90 {

// Rows of contiguous channels; strides count elements. Addresses and strides in bytes are multiples
// of 16, and channels of 8 (of 16 for kFloat8): then no read is partial, and what a tile has beyond
// C or P is filled with zeros by the copy engine.
struct Rows {
  const void* data;      // [n, P, C]
  const void* data_low;  // the low part of a float32 map, else null
  int64_t images, pixels, channels;
  int64_t image_stride, pixel_stride;
};
// 0, 1 and 2 as in infodisent/backends/native. kFloat8: e4m3, as `to_float8` makes it.
enum Dtype : int { kFloat32Parts = 0, kBFloat16 = 1, kFloat16 = 2, kFloat8 = 3 };
// Of kFloat8: what values were divided by, powers of two.
struct Scales {
  const float* u = nullptr;  // [C], of each row
  const float* x = nullptr;  // [n], of each image
};

struct Options {
  int device;
  int tile;     // index of kTiles in tile_schedule.h
  int cluster;  // 1; or 2: pairs of blocks share their pixels
  bool exact;   // whole float32 values; must be set for kFloat32Parts, and above kPackedPixels
};

struct Status {
  cudaError_t error;
  const char* where;  // what failed
};

// Y[b, p] = U X[b, p] in float32, and the pool of Y as in csrc/cpu/mx_pool.h; packed_key.h says how
// values are rounded without `exact`. kFloat32Parts: x and U are bfloat16 parts as `split` and
// `split_rotation` make them, and three products are added up, the small ones first. kFloat8: one
// product of what `to_float8` made of both, and pos and neg are multiplied by the scales after the
// pool, of which they change no place; never `exact`. Tensor cores add float8 products up with
// fewer bits than float32 has. Launches on `stream` and does not wait.
Status rotate_pool(
    const Rows& x, Dtype dtype,
    const void* u,                           // [C, C], contiguous
    const void* u_low,                       // [C, C] or null
    float* pos,                              // [n, C]
    float* neg,                              // [n, C]
    int32_t* pos_index, int32_t* neg_index,  // [n, C]
    void* keys,  // [2, n, C] int32, with `exact` int64: scratch of the tile "flat", else null
    const Options& options, cudaStream_t stream, const Scales& scales = {});

// x = high + low to 2^-17: high is x to nearest, towards zero where that would be Inf; low is what
// is left, to nearest, and 0 where x is Inf or NaN. The parts are [n, P, C], contiguous bfloat16.
Status split(const Rows& x,  // float32
             void* high, void* low, int device, cudaStream_t stream);

// The same for U [C, C], towards zero and with low parts of the same sign, none of them 0 unless u
// is: so Inf times one part never cancels Inf times the other.
Status split_rotation(const float* u,         // [C, C], contiguous
                      void* high, void* low,  // [C, C] bfloat16
                      int64_t channels, int device, cudaStream_t stream);

// Every image divided by a power of two, see float8.h, and rounded to e4m3, to nearest even. Inf
// becomes NaN, as e4m3 has no Inf. For U the rows are the images: images = C, pixels = 1.
Status to_float8(const Rows& x, Dtype dtype,  // kFloat32Parts: float32, all of it in `data`
                 void* out,                   // [n, P, C] of 1 byte, contiguous
                 uint32_t* largest,           // [n], scratch
                 float* scale,                // [n]
                 int device, cudaStream_t stream);

}  // namespace sm90
}  // namespace infodisent
