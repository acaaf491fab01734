// Launches of rotate_pool_kernel.cuh, and the small kernels around it: see rotate_pool.h.
// The float8 product is compiled in rotate_pool_float8.cu; the gradient of U is not here.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "float8.h"
#include "host.h"
#include "rotate_pool.h"
#include "rotate_pool_launch.cuh"

namespace infodisent {
namespace sm90 {
namespace {

// --- the kernels around the product ---

// What flat tiles have merged, as results.
template <typename KEY>
__global__ void unpack_kernel(const KEY* keys,  // [2, count]
                              float* pos, float* neg, int32_t* pos_index, int32_t* neg_index,
                              const float* u_scale,  // [C], of float8, else null
                              const float* x_scale,  // [n]
                              int64_t count, int32_t channels, uint32_t mask) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Pooled result;
  if constexpr (sizeof(KEY) == 8)
    result = unpacked(keys[i], keys[count + i]);
  else
    result = unpacked(Sides{keys[i], keys[count + i]}, mask);
  if (u_scale != nullptr) result = scaled(result, u_scale[i % channels], x_scale[i / channels]);
  pos[i] = result.pos;
  neg[i] = result.neg;
  pos_index[i] = result.pos_index;
  neg_index[i] = result.neg_index;
}

// To nearest, towards zero where that would be Inf.
__device__ __forceinline__ __nv_bfloat16 nearest(float v) {
  const __nv_bfloat16 rounded = __float2bfloat16_rn(v);
  const bool overflow = __hisinf(rounded) != 0 && fabsf(v) <= 3.402823466e38f;
  return overflow ? __float2bfloat16_rz(v) : rounded;
}

// 4 channels a thread.
__global__ void split_kernel(const float* x,           // [n, P, C]
                             __nv_bfloat16* high_out,  // [n, P, C]
                             __nv_bfloat16* low_out,   // [n, P, C]
                             int64_t quads,            // n P C / 4
                             int32_t channels4, int32_t pixels, int64_t image_stride,
                             int64_t pixel_stride) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < quads;
       i += stride) {
    const int64_t row = i / channels4, image = row / pixels;
    const int64_t at =
        image * image_stride + (row - image * pixels) * pixel_stride + (i - row * channels4) * 4;
    const float4 v4 = *reinterpret_cast<const float4*>(x + at);
    const float v[4] = {v4.x, v4.y, v4.z, v4.w};
    __align__(8) __nv_bfloat16 high[4], low[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      high[k] = nearest(v[k]);
      low[k] = fabsf(v[k]) <= 3.402823466e38f
                   ? __float2bfloat16_rn(v[k] - __bfloat162float(high[k]))
                   : __float2bfloat16_rn(0.0f);
    }
    *reinterpret_cast<uint2*>(high_out + 4 * i) = *reinterpret_cast<const uint2*>(high);
    *reinterpret_cast<uint2*>(low_out + 4 * i) = *reinterpret_cast<const uint2*>(low);
  }
}

__global__ void split_rotation_kernel(const float* u,           // [count]
                                      __nv_bfloat16* high_out,  // [count]
                                      __nv_bfloat16* low_out,   // [count]
                                      int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    constexpr float TINY = 1.17549435e-38f;  // 2^-126, the smallest normal number
    const float v = u[i];
    const float tiny = v == 0.0f ? 0.0f : copysignf(TINY, v);
    float high = __bfloat162float(__float2bfloat16_rz(v));
    if (high == 0.0f) high = tiny;
    float low = __bfloat162float(nearest(v - high));
    if (!(fabsf(low) >= TINY && (low > 0.0f) == (v > 0.0f))) low = tiny;
    high_out[i] = __float2bfloat16_rn(high);  // both are exact
    low_out[i] = __float2bfloat16_rn(low);
  }
}

// --- host ---

// Null where there is no such kernel: float16 with whole values only of kind kFlat, float8 without.
Launcher launcher(Dtype dtype, const Options& options) {
  const int tile = options.tile, cluster = options.cluster;
  if (dtype == kFloat8) return options.exact ? nullptr : float8_launcher(tile, cluster);
  if (dtype == kFloat16) {
    if (!options.exact) return of_tile<false, __half>(tile, cluster);
    return tile == kFlat ? of_cluster<kFlat, true, __half>(cluster) : nullptr;
  }
  return options.exact ? of_tile<true, __nv_bfloat16>(tile, cluster)
                       : of_tile<false, __nv_bfloat16>(tile, cluster);
}

}  // namespace

Status rotate_pool(const Rows& x, Dtype dtype, const void* u, const void* u_low, float* pos,
                   float* neg, int32_t* pos_index, int32_t* neg_index, void* keys,
                   const Options& options, cudaStream_t stream, const Scales& scales) {
  const bool parts = dtype == kFloat32Parts;
  const int size = size_of(dtype), vector = 16 / size;
  if (x.images < 1 || x.pixels < 1 || x.channels < 1) return refused("an empty map");
  if (x.channels % vector != 0 || x.image_stride % vector != 0 || x.pixel_stride % vector != 0 ||
      !aligned(x.data) || !aligned(u) || (parts && !(aligned(x.data_low) && aligned(u_low))))
    return refused("addresses, strides in bytes and bytes of channels must be multiples of 16");
  if (x.images * x.pixels >= (int64_t{1} << 31) - 256 || x.channels >= 1 << 24)
    return refused("2^31 pixels or more");
  if (options.tile < 0 || options.tile >= kTileKinds) return refused("no such tile");
  if (options.cluster != 1 && options.cluster != 2) return refused("clusters are of 1 or 2");
  if ((parts || x.pixels > kPackedPixels) && !options.exact)
    return refused("whole values are needed for these");
  if ((parts && (x.data_low == nullptr || u_low == nullptr)) ||
      (dtype == kFloat8 && (scales.u == nullptr || scales.x == nullptr)) ||
      (is_flat(options.tile) && keys == nullptr))
    return refused("an argument is missing");
  const TileShape& tile = kTiles[options.tile];
  if (!serves(options.tile, x.pixels)) return refused("this tile is for other maps");
  // where there is only one image, its stride may be anything
  const int64_t image_stride = x.images > 1 ? x.image_stride : x.pixels * x.pixel_stride;
  const int32_t pitch = pitch_of(x.images, x.pixels, image_stride, x.pixel_stride);
  const Layout layout = layout_of(options.tile, static_cast<int32_t>(x.images),
                                  static_cast<int32_t>(x.pixels), pitch);
  // several images with gaps between them: one box of as many, which cannot be halved in groups of
  // 8
  const bool boxes_of_images = tile.images > 1 && !layout.rows;
  if (boxes_of_images && options.cluster != 1)
    return refused("images with gaps between them need cluster = 1 with this tile");
  const Launcher run = launcher(dtype, options);
  if (run == nullptr) return refused("no kernel for this combination");
  const Device device(options.device);
  if (device.error() != cudaSuccess) return {device.error(), "the device"};
  if (encoder() == nullptr) return {cudaErrorNotSupported, "the driver has no tensor maps"};
  int processors = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, options.device);
  if (error != cudaSuccess) return {error, "the device"};

  Arguments a = {};
  a.layout = layout;
  a.images = static_cast<int32_t>(x.images);
  a.pixels = static_cast<int32_t>(x.pixels);
  a.channels = static_cast<int32_t>(x.channels);
  a.groups = channel_groups(a.channels, options.cluster, tile.channels);
  if (static_cast<int64_t>(a.groups) * layout.tiles >= int64_t{1} << 30)
    return refused("too many tiles");
  a.units = a.groups * layout.tiles;
  a.segments = parts ? 3 : 1;
  a.mask = options.exact ? 0 : mask_of(a.pixels);
  a.pos = pos;
  a.neg = neg;
  a.pos_index = pos_index;
  a.neg_index = neg_index;
  a.keys = keys;
  a.u_scale = dtype == kFloat8 ? scales.u : nullptr;
  a.x_scale = dtype == kFloat8 ? scales.x : nullptr;
  const int box_images = boxes_of_images ? tile.images : 1;
  const int box_rows = boxes_of_images        ? tile.pixels
                       : options.cluster == 1 ? tile.columns
                                              : slot_rows(tile.columns) / 2;
  a.box_bytes = static_cast<uint32_t>(box_rows * box_images * options.cluster * kRowBytes);
  const int64_t rows = layout.rows ? (x.images - 1) * pitch + x.pixels : x.pixels;
  const int64_t maps = layout.rows ? 1 : x.images;
  const int64_t row_bytes = x.pixel_stride * size, u_bytes = x.channels * size;
  const int64_t map_bytes = maps > 1 ? image_stride * size : rows * row_bytes;
  const bool encoded = encode(&a.u, dtype, u, x.channels, x.channels, 1, u_bytes,
                              x.channels * u_bytes, tile.channels / tile.parts, 1) &&
                       encode(&a.u_low, dtype, parts ? u_low : u, x.channels, x.channels, 1,
                              u_bytes, x.channels * u_bytes, tile.channels / tile.parts, 1) &&
                       encode(&a.x, dtype, x.data, x.channels, rows, maps, row_bytes, map_bytes,
                              box_rows, box_images) &&
                       encode(&a.x_low, dtype, parts ? x.data_low : x.data, x.channels, rows, maps,
                              row_bytes, map_bytes, box_rows, box_images);
  if (!encoded) return refused("the driver refused a tensor map");

  const int64_t count = x.images * x.channels;
  if (is_flat(options.tile)) {
    error = cudaMemsetAsync(keys, 0, 2 * count * (options.exact ? 8 : 4), stream);
    if (error != cudaSuccess) return {error, "clearing the keys"};
  }
  const Status status = run(a, options.device, processors, stream);
  if (status.error != cudaSuccess || !is_flat(options.tile)) return status;
  const auto unpack = [&](auto* kernel, auto* merged_keys) {
    return launch("unpacking", kernel, blocks_of(count), 256, stream, merged_keys, pos, neg,
                  pos_index, neg_index, a.u_scale, a.x_scale, count, a.channels, a.mask);
  };
  return options.exact ? unpack(unpack_kernel<uint64_t>, static_cast<const uint64_t*>(keys))
                       : unpack(unpack_kernel<uint32_t>, static_cast<const uint32_t*>(keys));
}

Status split(const Rows& x, void* high, void* low, int device_index, cudaStream_t stream) {
  if (x.channels % 4 != 0 || x.image_stride % 4 != 0 || x.pixel_stride % 4 != 0 ||
      !aligned(x.data) || !aligned(high) || !aligned(low))
    return refused("split: addresses and strides in bytes must be multiples of 16");
  const Device device(device_index);
  if (device.error() != cudaSuccess) return {device.error(), "the device"};
  const int64_t quads = x.images * x.pixels * x.channels / 4;
  if (quads == 0) return {cudaSuccess, ""};
  return launch("split", split_kernel, std::min(blocks_of(quads), 132u * 16u), 256, stream,
                static_cast<const float*>(x.data), static_cast<__nv_bfloat16*>(high),
                static_cast<__nv_bfloat16*>(low), quads, static_cast<int32_t>(x.channels / 4),
                static_cast<int32_t>(x.pixels), x.image_stride, x.pixel_stride);
}

Status split_rotation(const float* u, void* high, void* low, int64_t channels, int device_index,
                      cudaStream_t stream) {
  const Device device(device_index);
  if (device.error() != cudaSuccess) return {device.error(), "the device"};
  const int64_t count = channels * channels;
  if (count == 0) return {cudaSuccess, ""};
  return launch("split_rotation", split_rotation_kernel, std::min(blocks_of(count), 132u * 16u),
                256, stream, u, static_cast<__nv_bfloat16*>(high), static_cast<__nv_bfloat16*>(low),
                count);
}

}  // namespace sm90
}  // namespace infodisent
