// What a thread of a kernel may ask of the emulated machine, and how kernels are launched on it.
// What the functions do is in machine.cpp, products.cpp and runtime.cpp.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>

namespace infodisent {
namespace emulator {

// Whether this fault is planted: see FAULTS in tests/cuda/emulation.py.
bool fault(const char* name);

extern long loads;  // by __ldg

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
int lane();
uint32_t rank();  // of the block in its cluster

// --- one function an instruction; shared addresses have the rank in bits 24 and up ---

uint32_t dynamic_shared();
void barrier_init(uint32_t barrier, uint32_t arrivals);
void arrive(uint32_t barrier);
void arrive_at(uint32_t barrier, uint32_t rank);
void store_at(uint32_t to, uint32_t rank, const void* from, size_t bytes);
void load_shared(uint32_t from, void* to, size_t bytes);
void arrive_expect(uint32_t barrier, uint32_t bytes);
void wait(uint32_t barrier, uint32_t parity);
void sync_block();
void sync_cluster();
// `blocks`: a bit for each rank that gets the box.
void load_box(uint32_t to, const void* map, int32_t channel, int32_t row, int32_t image,
              uint32_t barrier, uint32_t blocks);
uint64_t shuffle(uint64_t value, int from_lane);
// d (+)= A B of a warp's 16 rows. Exactly one of `registers` and `a` is A.
struct Operands {
  int columns, element_bytes;
  bool is_float16, accumulate;
  float* d;
  const uint32_t* registers;
  uint64_t a, b;
};
void product(const Operands& operands);
void commit();
void wait_products(int pending);
void change_registers(int count, bool more);

// --- launches ---

using Thread = std::function<void()>;  // all of a kernel, as one thread runs it
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, const Thread& thread);

template <typename... P, typename... A>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                          const A&... arguments) {
  return run(*config, reinterpret_cast<const void*>(kernel),
             [&] { kernel(static_cast<P>(arguments)...); });
}

}  // namespace emulator
}  // namespace infodisent
