// Launches of rotate_pool_backward_kernel.cuh, and the small kernels around it: see
// rotate_pool_backward.h.
#include <algorithm>

#include "host.h"
#include "rotate_pool_backward.h"
#include "rotate_pool_backward_kernel.cuh"

namespace infodisent {
namespace sm90 {
namespace {

constexpr int kScaleChannels = 32, kScaleRows = 8;

// Powers of two that bring the largest finite gradient of each channel into [2^13, 2^14): the two
// of an image may meet in one pixel, and float16 ends below 2^16. Those of no winner are left out.
__global__ void __launch_bounds__(kScaleChannels* kScaleRows)
    scales_kernel(const float* grad_pos,     // [B, C]
                  const float* grad_neg,     // [B, C]
                  const int32_t* pos_index,  // [B, C]
                  const int32_t* neg_index,  // [B, C]
                  float* scales,             // [C]
                  int32_t images, int32_t channels) {
  __shared__ float largest[kScaleRows][kScaleChannels];
  const int32_t channel = blockIdx.x * kScaleChannels + threadIdx.x;
  float most = 0.0f;
  if (channel < channels) {
    for (int32_t image = threadIdx.y; image < images; image += kScaleRows) {
      const int64_t at = static_cast<int64_t>(image) * channels + channel;
      const float pos = fabsf(grad_pos[at]), neg = fabsf(grad_neg[at]);
      if (pos_index[at] >= 0 && finite(pos)) most = fmaxf(most, pos);
      if (neg_index[at] >= 0 && finite(neg)) most = fmaxf(most, neg);
    }
  }
  largest[threadIdx.y][threadIdx.x] = most;
  __syncthreads();
  if (threadIdx.y != 0 || channel >= channels) return;
  for (int row = 1; row < kScaleRows; ++row) most = fmaxf(most, largest[row][threadIdx.x]);
  scales[channel] = backward::scale_of(most);
}

// The parts, added in their order; 4 numbers a thread. A sum may be Inf or NaN only where one of
// them is, or where it overflows.
template <typename T>
__global__ void add_kernel(const float* parts,  // [splits, C, C]
                           void* out,           // [C, C]
                           int64_t quads,       // C C / 4
                           int32_t splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= quads) return;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  for (int32_t split = 0; split < splits; ++split) {
    const float4 part = reinterpret_cast<const float4*>(parts)[split * quads + i];
    sum.x += part.x;
    sum.y += part.y;
    sum.z += part.z;
    sum.w += part.w;
  }
  if constexpr (std::is_same<T, float>::value) {
    static_cast<float4*>(out)[i] = sum;
  } else {
    static_cast<uint2*>(out)[i] = make_uint2(half_bits<T>(sum.x) | half_bits<T>(sum.y) << 16,
                                             half_bits<T>(sum.z) | half_bits<T>(sum.w) << 16);
  }
}

template <int KIND, int CLUSTER, typename T>
Status launch_grad(const GradArguments& arguments, int device, int processors,
                   cudaStream_t stream) {
  constexpr backward::Piece PIECE = backward::kPieces[KIND];
  using K = GradKernel<PIECE.parts, PIECE.through, CLUSTER, T>;
  return launch_persistent<grad_u_kernel<PIECE.parts, PIECE.through, CLUSTER, T>, CLUSTER>(
      arguments, arguments.grid.units, kThreads, K::SHARED, device, processors, stream);
}

using GradLauncher = Status (*)(const GradArguments&, int, int, cudaStream_t);

template <int KIND>
GradLauncher of_kind(Dtype dtype, int cluster) {
  if (dtype == kFloat16)
    return cluster == 1 ? launch_grad<KIND, 1, __half> : launch_grad<KIND, 2, __half>;
  return cluster == 1 ? launch_grad<KIND, 1, __nv_bfloat16> : launch_grad<KIND, 2, __nv_bfloat16>;
}
GradLauncher grad_launcher(int kind, Dtype dtype, int cluster) {
  static_assert(backward::kPieceKinds == 6, "one line each below");
  switch (kind) {
    case 0:
      return of_kind<0>(dtype, cluster);
    case 1:
      return of_kind<1>(dtype, cluster);
    case 2:
      return of_kind<2>(dtype, cluster);
    case 3:
      return of_kind<3>(dtype, cluster);
    case 4:
      return of_kind<4>(dtype, cluster);
    default:
      return of_kind<5>(dtype, cluster);
  }
}

}  // namespace

Status grad_u(const Rows& x, Dtype dtype, const float* grad_pos, const float* grad_neg,
              const int32_t* pos_index, const int32_t* neg_index, void* out, float* parts,
              float* scales, const GradOptions& options, cudaStream_t stream) {
  if (dtype != kBFloat16 && dtype != kFloat16) return refused("for bfloat16 and float16 only");
  if (x.images < 1 || x.pixels < 1 || x.channels < 1) return refused("an empty map");
  if (x.channels % 8 != 0 || x.image_stride % 8 != 0 || x.pixel_stride % 8 != 0 ||
      !aligned(x.data) || !aligned(out) || (parts != nullptr && !aligned(parts)))
    return refused("addresses, strides in bytes and channels * 2 must be multiples of 16");
  if (x.images >= int64_t{1} << 24 || x.pixels >= backward::kMostPixels ||
      x.channels >= int64_t{1} << 24)
    return refused("2^26 pixels, 2^24 images or channels, or more");
  if (options.cluster != 1 && options.cluster != 2) return refused("clusters are of 1 or 2");
  if (options.splits < 1 || options.splits > x.images) return refused("splits are 1 ... images");
  // where there is only one image or pixel, the stride may be anything
  const int64_t pixel_stride = x.pixels == 1 ? x.channels : x.pixel_stride;
  const int64_t image_stride = x.images > 1 ? x.image_stride : x.pixels * pixel_stride;
  const int32_t pitch = pitch_of(x.images, x.pixels, image_stride, pixel_stride);
  const backward::Cut cut = backward::choose_cut(static_cast<int32_t>(x.pixels), pitch);
  const backward::Piece piece = backward::kPieces[cut.kind];
  GradArguments a = {};
  a.images = static_cast<int32_t>(x.images);
  a.pixels = static_cast<int32_t>(x.pixels);
  a.channels = static_cast<int32_t>(x.channels);
  a.grid = backward::grid_of(a.images, a.channels, options.splits, options.cluster);
  a.pitch = cut.pitch;
  if (static_cast<int64_t>(a.grid.images + 2) * a.pitch >= int64_t{1} << 31 ||
      static_cast<int64_t>(a.grid.groups) * a.grid.across * a.grid.splits >= int64_t{1} << 30)
    return refused("too much in one call");
  if (a.grid.splits > 1 && parts == nullptr) return refused("an argument is missing");
  if (dtype == kFloat16 && scales == nullptr) return refused("an argument is missing");
  const Device device(options.device);
  if (device.error() != cudaSuccess) return {device.error(), "the device"};
  if (encoder() == nullptr) return {cudaErrorNotSupported, "the driver has no tensor maps"};
  int processors = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, options.device);
  if (error != cudaSuccess) return {error, "the device"};

  // three dimensions, so that where images are not gone through a box that reaches beyond the last
  // pixel of one gets zeros there and not pixels of the next
  const int64_t map_rows = piece.through ? (x.images - 1) * cut.pitch + x.pixels : x.pixels;
  const int64_t maps = piece.through ? 1 : x.images;
  const int64_t map_stride = piece.through ? map_rows * pixel_stride : image_stride;
  if (!encode(&a.map, dtype, x.data, x.channels, map_rows, maps, pixel_stride * 2, map_stride * 2,
              16 * piece.parts, 1))
    return refused("the driver refused a tensor map");
  a.grad_pos = grad_pos;
  a.grad_neg = grad_neg;
  a.pos_index = pos_index;
  a.neg_index = neg_index;
  a.scales = scales;
  a.x = x.data;
  a.image_stride = image_stride;
  a.pixel_stride = pixel_stride;
  a.out = a.grid.splits > 1 ? parts : out;
  a.out_half = a.grid.splits == 1 && options.out_half;
  if (dtype == kFloat16) {
    const unsigned blocks = (a.channels + kScaleChannels - 1) / kScaleChannels;
    const Status scaled =
        launch("scales", scales_kernel, blocks, dim3(kScaleChannels, kScaleRows), stream, grad_pos,
               grad_neg, pos_index, neg_index, scales, a.images, a.channels);
    if (scaled.error != cudaSuccess) return scaled;
  }
  const Status status =
      grad_launcher(cut.kind, dtype, options.cluster)(a, options.device, processors, stream);
  if (status.error != cudaSuccess || a.grid.splits == 1) return status;
  const int64_t quads = x.channels * x.channels / 4;
  const auto add = !options.out_half   ? add_kernel<float>
                   : dtype == kFloat16 ? add_kernel<__half>
                                       : add_kernel<__nv_bfloat16>;
  return launch("adding the parts", add, blocks_of(quads), 256, stream, parts, out, quads,
                a.grid.splits);
}

}  // namespace sm90
}  // namespace infodisent
