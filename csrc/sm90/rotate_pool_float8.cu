// The float8 (e4m3) product of rotate_pool.h, and the cast to it: float8.h. A source of its
// own, so that it compiles beside rotate_pool.cu.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "float8.h"
#include "host.h"
#include "rotate_pool.h"
#include "rotate_pool_launch.cuh"

namespace infodisent {
namespace sm90 {
namespace {

constexpr int kVector = 8;  // channels a thread reads at a time
constexpr int kCastThreads = 256;

__device__ __forceinline__ float widened(float v) { return v; }
__device__ __forceinline__ float widened(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widened(__half v) { return __half2float(v); }

// kVector contiguous values from a multiple of 16 bytes on.
template <typename T>
__device__ __forceinline__ void load(const T* from, float (&v)[kVector]) {
  constexpr int WORDS = kVector * sizeof(T) / 16;
  __align__(16) T raw[kVector];
#pragma unroll
  for (int i = 0; i < WORDS; ++i)
    reinterpret_cast<uint4*>(raw)[i] = reinterpret_cast<const uint4*>(from)[i];
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] = widened(raw[i]);
}

// Where the vectors of an image are: `chunks` blocks share one image.
struct Vectors {
  int64_t image, first, step, count;
  __device__ __forceinline__ Vectors(int32_t chunks, int32_t pixels, int32_t vectors)
      : image(blockIdx.x / chunks),
        first(static_cast<int64_t>(blockIdx.x % chunks) * blockDim.x + threadIdx.x),
        step(static_cast<int64_t>(chunks) * blockDim.x),
        count(static_cast<int64_t>(pixels) * vectors) {}
};

// Bits of the largest finite magnitude of each image; `largest` is 0 before.
template <typename T>
__global__ void largest_kernel(const T* x,         // [n, P, C]
                               uint32_t* largest,  // [n]
                               int32_t chunks, int32_t pixels,
                               int32_t vectors,  // C / kVector
                               int64_t image_stride, int64_t pixel_stride) {
  const Vectors at(chunks, pixels, vectors);
  uint32_t most = 0;
  for (int64_t i = at.first; i < at.count; i += at.step) {
    const int64_t pixel = i / vectors;
    float v[kVector];
    load(x + at.image * image_stride + pixel * pixel_stride + (i - pixel * vectors) * kVector, v);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const uint32_t magnitude = bits_of(v[k]) & ~kSign;
      most = larger(most, magnitude < kInfinity ? magnitude : 0);
    }
  }
  most = __reduce_max_sync(~0u, most);
  if (threadIdx.x % 32 == 0 && most != 0) atomicMax(largest + at.image, most);
}

template <typename T>
__global__ void cast_kernel(const T* x,               // [n, P, C]
                            const uint32_t* largest,  // [n]
                            uint2* out,               // [n, P, C / kVector] of kVector bytes
                            float* scales,            // [n]
                            int32_t chunks, int32_t pixels,
                            int32_t vectors,  // C / kVector
                            int64_t image_stride, int64_t pixel_stride) {
  const Vectors at(chunks, pixels, vectors);
  const float scale = float8_scale(largest[at.image]), inverse = float8_inverse(scale);
  if (at.first == 0) scales[at.image] = scale;
  for (int64_t i = at.first; i < at.count; i += at.step) {
    const int64_t pixel = i / vectors;
    float v[kVector];
    load(x + at.image * image_stride + pixel * pixel_stride + (i - pixel * vectors) * kVector, v);
    // the conversion would make Inf 448, which is finite
#pragma unroll
    for (int k = 0; k < kVector; ++k)
      v[k] = (bits_of(v[k]) & ~kSign) < kInfinity ? v[k] * inverse : float_of(kNaN);
    uint32_t pairs[kVector / 2];
#pragma unroll
    for (int k = 0; k < kVector / 2; ++k)
      pairs[k] =
          __nv_cvt_float2_to_fp8x2(make_float2(v[2 * k], v[2 * k + 1]), __NV_SATFINITE, __NV_E4M3);
    out[at.image * at.count + i] = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
  }
}

template <typename T>
Status cast(const Rows& x, void* out, uint32_t* largest, float* scale, cudaStream_t stream) {
  const int32_t vectors = static_cast<int32_t>(x.channels / kVector);
  const int32_t pixels = static_cast<int32_t>(x.pixels);
  // enough blocks for the processor, each with several vectors a thread where there are as many
  const int64_t wanted = (x.pixels * vectors + 4 * kCastThreads - 1) / (4 * kCastThreads);
  const auto chunks =
      static_cast<int32_t>(std::min(wanted, std::max<int64_t>(1, 132 * 16 / x.images)));
  const auto blocks = static_cast<unsigned>(x.images * chunks);
  const auto from = static_cast<const T*>(x.data);
  const Status found =
      launch("the largest magnitudes", largest_kernel<T>, blocks, kCastThreads, stream, from,
             largest, chunks, pixels, vectors, x.image_stride, x.pixel_stride);
  if (found.error != cudaSuccess) return found;
  return launch("the cast", cast_kernel<T>, blocks, kCastThreads, stream, from, largest,
                static_cast<uint2*>(out), scale, chunks, pixels, vectors, x.image_stride,
                x.pixel_stride);
}

}  // namespace

Launcher float8_launcher(int tile, int cluster) {
  return of_tile<false, __nv_fp8_e4m3>(tile, cluster);
}

Status to_float8(const Rows& x, Dtype dtype, void* out, uint32_t* largest, float* scale,
                 int device_index, cudaStream_t stream) {
  const int vector = dtype == kFloat32Parts ? 4 : 8;
  if (dtype == kFloat8 || x.channels % 16 != 0 || x.image_stride % vector != 0 ||
      x.pixel_stride % vector != 0 || !aligned(x.data) || !aligned(out))
    return refused(
        "to_float8: addresses and strides in bytes, and channels, must be multiples of 16");
  if (x.images * x.pixels >= (int64_t{1} << 31) - 256 || x.channels >= 1 << 24)
    return refused("to_float8: 2^31 pixels or more");
  if (x.images < 1 || x.pixels < 1 || x.channels < 1) return {cudaSuccess, ""};
  const Device device(device_index);
  if (device.error() != cudaSuccess) return {device.error(), "the device"};
  const cudaError_t error = cudaMemsetAsync(largest, 0, x.images * sizeof *largest, stream);
  if (error != cudaSuccess) return {error, "clearing the largest magnitudes"};
  switch (dtype) {
    case kFloat32Parts:
      return cast<float>(x, out, largest, scale, stream);
    case kBFloat16:
      return cast<__nv_bfloat16>(x, out, largest, scale, stream);
    default:
      return cast<__half>(x, out, largest, scale, stream);
  }
}

}  // namespace sm90
}  // namespace infodisent
