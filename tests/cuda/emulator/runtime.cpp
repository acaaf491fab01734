// The CUDA runtime and driver, as far as csrc/sm90/host.h calls them.
#include <set>
#include <utility>

#include "machine.h"

namespace infodisent {
namespace emulator {

Runtime runtime;

namespace {
std::map<const void*, int> most_shared;  // of each kernel

CUresult encode_map(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* base,
                    const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                    const cuuint32_t* steps, CUtensorMapInterleave interleave,
                    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                    CUtensorMapFloatOOBfill fill) {
  TensorMap map = {};
  map.base = static_cast<const uint8_t*>(base);
  map.element_bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  bool ok = rank == 3 && reinterpret_cast<uintptr_t>(base) % 16 == 0 &&
            reinterpret_cast<uintptr_t>(to) % 64 == 0 &&
            interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
            fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  for (int i = 0; i < 3; ++i) {
    map.sizes[i] = sizes[i];
    map.box[i] = box[i];
    ok = ok && sizes[i] >= 1 && sizes[i] <= uint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256 &&
         steps[i] == 1;
  }
  for (int i = 0; i < 2; ++i) {
    map.strides[i] = strides[i];
    ok = ok && strides[i] % 16 == 0 && strides[i] > 0 && strides[i] < uint64_t{1} << 40;
  }
  ok = ok && box[0] * map.element_bytes == 128;  // what the swizzle spans
  if (!ok) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(to, &map, sizeof map);
  return CUDA_SUCCESS;
}
CUresult current_context(CUcontext* context) {
  *context = runtime.context;
  return CUDA_SUCCESS;
}
CUresult make_current(CUcontext context) {
  runtime.context = context;
  return CUDA_SUCCESS;
}

cudaError_t entry_point(const char* name, void** entry, cudaDriverEntryPointQueryResult* result) {
  const std::map<std::string, void*> known = {
      {"cuTensorMapEncodeTiled", reinterpret_cast<void*>(encode_map)},
      {"cuCtxGetCurrent", reinterpret_cast<void*>(current_context)},
      {"cuCtxSetCurrent", reinterpret_cast<void*>(make_current)},
  };
  const auto found = known.find(name);
  if (found == known.end()) fail(std::string("the driver is asked for ") + name);
  *entry = found->second;
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, const Thread& thread) {
  if (!runtime.can_launch) return cudaErrorLaunchOutOfResources;
  int cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i)
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension)
      cluster = static_cast<int>(config.attrs[i].val.clusterDim.x);
  const size_t shared = config.dynamicSmemBytes;
  const unsigned threads = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  if (config.gridDim.x == 0 || config.gridDim.x % cluster != 0 || threads == 0 || threads > 1024)
    return cudaErrorInvalidConfiguration;
  const auto most = most_shared.find(kernel);
  if (shared > (most == most_shared.end() ? 48u << 10 : static_cast<unsigned>(most->second)))
    return cudaErrorInvalidValue;
  run_grid(config, cluster, thread);
  return cudaSuccess;
}

}  // namespace emulator
}  // namespace infodisent

using infodisent::emulator::runtime;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > 227 << 10) return cudaErrorInvalidValue;
  infodisent::emulator::most_shared[kernel] = bytes;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = runtime.processors;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  runtime.context = reinterpret_cast<CUcontext>(0x10);  // the device's own
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(runtime.last_error, cudaSuccess); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = runtime.driver;
  return cudaSuccess;
}
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return infodisent::emulator::entry_point(name, entry, result);
}
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** entry, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
  return infodisent::emulator::entry_point(name, entry, result);
}
#endif

}  // extern "C"
