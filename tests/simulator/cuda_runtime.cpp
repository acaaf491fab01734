// EMULATION: what csrc/sm90 asks of the CUDA runtime and of the driver, without a GPU. Linked with
// its objects and its bindings in the place of cudart: launches, fills and tensor maps are handed
// to Python, where tests/simulator/cuda.py executes them.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>

namespace {

using OnLaunch = int (*)(const char* kernel, const unsigned* sizes, unsigned cluster,
                         uint64_t shared, void** arguments);
using OnFill = int (*)(uint64_t to, int value, uint64_t bytes);
OnLaunch on_launch = nullptr;
OnFill on_fill = nullptr;
int multiprocessors = 1;

// By the address of the host's function: its name in PTX, and the shared memory it may have.
struct Kernel {
  std::string name;
  size_t most_shared = 48 << 10;
};
std::unordered_map<const void*, Kernel>& kernels() {
  static std::unordered_map<const void*, Kernel> all;
  return all;
}

// A tensor map as the simulator reads it: 128 bytes of its own making.
struct Map {
  uint32_t magic;
  uint8_t type, rank, swizzle, fill;
  uint64_t address;
  uint32_t sizes[5];
  uint8_t strides[4 * 8];  // of dimension 1 on; not aligned
  uint16_t box[5], steps[5];
  uint8_t rest[128 - 88];
};
static_assert(sizeof(Map) == 128 && sizeof(CUtensorMap) == 128, "the size of a tensor map");

CUresult encode(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* address,
                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                const cuuint32_t* steps, CUtensorMapInterleave interleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  const auto place = reinterpret_cast<uintptr_t>(address);
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || rank < 1 || rank > 5 || place % 16 != 0)
    return CUDA_ERROR_INVALID_VALUE;
  Map map = {};
  map.magic = 0x54504d50;
  map.type = static_cast<uint8_t>(type);
  map.rank = static_cast<uint8_t>(rank);
  map.swizzle = static_cast<uint8_t>(swizzle);
  map.fill = static_cast<uint8_t>(fill);
  map.address = place;
  for (unsigned i = 0; i < rank; ++i) {
    const bool size = sizes[i] >= 1 && sizes[i] <= uint64_t{1} << 32;
    const bool stride = i == 0 || (strides[i - 1] % 16 == 0 && strides[i - 1] < uint64_t{1} << 40);
    if (!size || !stride || box[i] < 1 || box[i] > 256) return CUDA_ERROR_INVALID_VALUE;
    map.sizes[i] = static_cast<uint32_t>(sizes[i]);
    map.box[i] = static_cast<uint16_t>(box[i]);
    map.steps[i] = static_cast<uint16_t>(steps[i]);
    if (i > 0) std::memcpy(map.strides + 8 * (i - 1), &strides[i - 1], 8);
  }
  std::memcpy(to, &map, sizeof map);
  return CUDA_SUCCESS;
}
CUresult no_context(CUcontext* context) {
  *context = nullptr;
  return CUDA_SUCCESS;
}
CUresult any_context(CUcontext) { return CUDA_SUCCESS; }

}  // namespace

extern "C" {

void simulator_connect(OnLaunch launch, OnFill fill, int processors) {
  on_launch = launch;
  on_fill = fill;
  multiprocessors = processors;
}

// --- what nvcc's own code calls ---

void** __cudaRegisterFatBinary(void*) {
  static void* nothing = nullptr;
  return &nothing;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  kernels()[host].name = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t) { return 1; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  return cudaErrorInvalidConfiguration;  // kernels are launched by cudaLaunchKernelEx alone
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorInvalidConfiguration;
}

// --- the runtime ---

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host,
                                void** arguments) {
  const auto found = kernels().find(host);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
      cluster = config->attrs[i].val.clusterDim.x;
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  if (config->dynamicSmemBytes > found->second.most_shared || cluster > 8 || grid.x % cluster != 0)
    return cudaErrorInvalidValue;
  const unsigned sizes[6] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  const int failed =
      on_launch(found->second.name.c_str(), sizes, cluster, config->dynamicSmemBytes, arguments);
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > 227 << 10) return cudaErrorInvalidValue;
    kernels()[host].most_shared = static_cast<size_t>(value);
  }
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return on_fill(reinterpret_cast<uint64_t>(to), value, bytes) ? cudaErrorInvalidValue
                                                               : cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMultiProcessorCount) return cudaErrorInvalidValue;
  *value = multiprocessors;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "the simulator gave up" : "an error";
}

static cudaError_t entry_point(const char* name, void** entry,
                               cudaDriverEntryPointQueryResult* result) {
  const std::string asked = name;
  *entry = asked == "cuTensorMapEncodeTiled" ? reinterpret_cast<void*>(encode)
           : asked == "cuCtxGetCurrent"      ? reinterpret_cast<void*>(no_context)
           : asked == "cuCtxSetCurrent"      ? reinterpret_cast<void*>(any_context)
                                             : nullptr;
  *result = *entry != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return entry_point(name, entry, result);
}
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** entry, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
  return entry_point(name, entry, result);
}
#endif
}
