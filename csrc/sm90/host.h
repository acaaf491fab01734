// What the launches of the kernels for Hopper share on the host.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "rotate_pool.h"
#include "tile_schedule.h"

namespace infodisent {
namespace sm90 {

// A function of the driver, without linking it; null where the driver is too old.
inline void* of_driver(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &entry, cudaEnableDefault, &result);
#endif
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? entry : nullptr;
}
// Makes a device current for the calling thread, and then the context that was, or none where there
// was none. The runtime linked here is not the one that the caller uses, so what both share counts:
// the driver's context.
class Device {
 public:
  explicit Device(int device) {
    static const auto current =
        reinterpret_cast<CUresult (*)(CUcontext*)>(of_driver("cuCtxGetCurrent"));
    // a driver that was never initialised has no context of this thread: before_ stays null
    if (current != nullptr && current(&before_) != CUDA_SUCCESS) before_ = nullptr;
    error_ = cudaSetDevice(device);
  }
  ~Device() {
    static const auto make_current =
        reinterpret_cast<CUresult (*)(CUcontext)>(of_driver("cuCtxSetCurrent"));
    if (make_current != nullptr) make_current(before_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  cudaError_t error() const { return error_; }

 private:
  CUcontext before_ = nullptr;
  cudaError_t error_;
};

constexpr Status refused(const char* why) { return {cudaErrorInvalidValue, why}; }

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline unsigned blocks_of(int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); }

// --- tensor maps ---

// Bytes of an element of the operands.
constexpr int size_of(Dtype dtype) { return dtype == kFloat8 ? 1 : 2; }

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);
// Null where the driver is too old.
inline Encode encoder() {
  static const auto entry = reinterpret_cast<Encode>(of_driver("cuTensorMapEncodeTiled"));
  return entry;
}

// A map of [images, rows, channels] read in boxes of `box_rows` rows (of `box_images` images) by as
// many channels as are 128 bytes. Strides in bytes.
inline bool encode(CUtensorMap* map, Dtype dtype, const void* data, int64_t channels, int64_t rows,
                   int64_t images, int64_t row_stride, int64_t image_stride, int box_rows,
                   int box_images) {
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(channels), static_cast<cuuint64_t>(rows),
                               static_cast<cuuint64_t>(images)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(row_stride),
                                 static_cast<cuuint64_t>(image_stride)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(block_k(size_of(dtype))),
                             static_cast<cuuint32_t>(box_rows),
                             static_cast<cuuint32_t>(box_images)};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUtensorMapDataType type = dtype == kFloat8
                                       ? CU_TENSOR_MAP_DATA_TYPE_UINT8  // there is none for float8
                                   : dtype == kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return encoder()(map, type, 3, const_cast<void*>(data), sizes, strides, box, steps,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// --- launches ---

// Launches a kernel and says what became of that. Not `<<<>>>` and cudaGetLastError, which would
// report, and take away, an error that an earlier call of somebody else has left behind.
template <typename... P, typename... A>
Status launch(const char* what, void (*kernel)(P...), const cudaLaunchConfig_t& config,
              const A&... arguments) {
  return {cudaLaunchKernelEx(&config, kernel, arguments...), what};
}
template <typename... P, typename... A>
Status launch(const char* what, void (*kernel)(P...), unsigned blocks, dim3 threads,
              cudaStream_t stream, const A&... arguments) {
  const cudaLaunchConfig_t config = {dim3(blocks), threads, 0, stream, nullptr, 0};
  return launch(what, kernel, config, arguments...);
}

// Launches a kernel whose blocks stay and take one of `units` units of work after the other, in
// clusters of CLUSTER. `KERNEL` is a parameter of the template so that each remembers for itself on
// which devices it may have its shared memory.
template <auto KERNEL, int CLUSTER, typename A>
Status launch_persistent(const A& arguments, int32_t units, int threads, int shared, int device,
                         int processors, cudaStream_t stream) {
  static std::atomic<uint64_t> prepared{0};  // bit: device
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((prepared.load(std::memory_order_relaxed) & bit) == 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return {error, "shared memory"};
    prepared.fetch_or(bit, std::memory_order_relaxed);
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {CLUSTER, 1, 1};
  const int clusters = std::min(units, std::max(1, processors / CLUSTER));
  const cudaLaunchConfig_t config = {
      dim3(clusters * CLUSTER), dim3(threads), static_cast<size_t>(shared), stream, &attribute,
      CLUSTER == 1 ? 0u : 1u};
  return launch("the product", KERNEL, config, arguments);
}

}  // namespace sm90
}  // namespace infodisent
