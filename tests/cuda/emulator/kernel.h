// What a source of csrc/sm90 finds on this emulator in place of nvcc's built-ins: included before
// it
// (-include), with ptx.cuh of this folder in place of theirs.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "device.h"

template <typename... P>  // cuda_runtime.h has this for nvcc alone
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

#define cudaLaunchKernelEx ::infodisent::emulator::launch_kernel
#define threadIdx (::infodisent::emulator::thread_index())
#define blockIdx (::infodisent::emulator::block_index())
#define blockDim (::infodisent::emulator::block_size())
#define gridDim (::infodisent::emulator::grid_size())
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __shared__
#define __shared__ static  // blocks of kernels without clusters run one after the other
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __forceinline__
#define __forceinline__ inline

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return static_cast<T>(infodisent::emulator::shuffle(static_cast<uint32_t>(value), from));
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int by) {
  const int from = infodisent::emulator::lane() ^ by;
  return static_cast<T>(infodisent::emulator::shuffle(static_cast<uint32_t>(value), from));
}
inline uint32_t __reduce_max_sync(unsigned mask, uint32_t value) {
  for (int by = 1; by < 32; by *= 2) {
    const uint32_t other = __shfl_xor_sync(mask, value, by);
    value = other > value ? other : value;
  }
  return value;
}
inline void __syncthreads() { infodisent::emulator::sync_block(); }
template <typename T>
T __ldg(const T* from) {
  ++infodisent::emulator::loads;
  return *from;
}
template <typename T>
T atomicMax(T* to, T value) {
  const T before = *to;
  if (value > before) *to = value;
  return before;
}
inline void atomicMax(unsigned long long* to, uint64_t value) {
  if (value > *to) *to = value;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
