// What the launches of the kernels for Hopper share on the host.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "rotate_pool.h"

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
// Makes a device current for the calling thread, and then the context that was. The runtime linked
// here is not the one that the caller uses, so what both share counts: the driver's context.
class Device {
 public:
  explicit Device(int device) {
    static const auto current =
        reinterpret_cast<CUresult (*)(CUcontext*)>(of_driver("cuCtxGetCurrent"));
    if (current != nullptr && current(&before_) != CUDA_SUCCESS) before_ = nullptr;
    error_ = cudaSetDevice(device);
  }
  ~Device() {
    static const auto make_current =
        reinterpret_cast<CUresult (*)(CUcontext)>(of_driver("cuCtxSetCurrent"));
    if (before_ != nullptr && make_current != nullptr) make_current(before_);
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
  cudaLaunchConfig_t config = {};
  const int clusters = std::min(units, std::max(1, processors / CLUSTER));
  config.gridDim = dim3(clusters * CLUSTER);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = CLUSTER == 1 ? 0 : 1;
  return {cudaLaunchKernelEx(&config, KERNEL, arguments), "the product"};
}

}  // namespace sm90
}  // namespace infodisent
