// The PTX of Hopper (sm_90a) that the kernels are made of, one function an instruction.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace infodisent {
namespace sm90 {

// Where the dynamic shared memory of the block begins: an address in the window of shared memory,
// as these instructions take it. It is valid as an address of this block both in .shared::cta and
// in .shared::cluster.
__device__ __forceinline__ uint32_t dynamic_shared() {
  extern __shared__ uint8_t dynamic_memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_memory));
}

// --- mbarrier: `arrivals` arrivals, and all bytes announced, complete a phase ---

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After the inits: makes them visible to the cluster and to the copy engine (the async proxy), once
// a barrier of the block or cluster has followed.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives at the barrier that has this address in block `rank` of the cluster (this one included).
// Without .release.cluster, which would wait for all memory of the GPU: what such an arrival
// reports here is that products have read shared memory, and those are complete before
// (wgmma_wait).
__device__ __forceinline__ void arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// One arrival, and so many bytes more that have to come before the phase is complete.
__device__ __forceinline__ void arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}
// Waits until the current phase is not one of this parity, that is until the phase of this parity
// is complete. Only the current phase and the one before can be told apart.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {  // try_wait sleeps for a while before it says no
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}

// --- clusters ---

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster; what was written before is seen after.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Four words, which one instruction moves.
struct Words {
  uint32_t w[4];
};
// Into what has this address in block `rank` of the cluster (this one included).
__device__ __forceinline__ void store_at(uint32_t to, uint32_t rank, const Words& words) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.v4.b32 [remote], {%2, %3, %4, %5};\n"
      "}\n" ::"r"(to),
      "r"(rank), "r"(words.w[0]), "r"(words.w[1]), "r"(words.w[2]), "r"(words.w[3])
      : "memory");
}
// Of this block's shared memory.
__device__ __forceinline__ Words load_words(uint32_t from) {
  Words words;
  asm volatile("ld.shared::cta.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.w[0]), "=r"(words.w[1]), "=r"(words.w[2]), "=r"(words.w[3])
               : "r"(from)
               : "memory");
  return words;
}
// Arrives at the barrier that has this address in block `rank`: what this thread has stored before
// is seen there by those that wait_for_cluster.
__device__ __forceinline__ void publish_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// `wait`, and what blocks of the cluster stored before they arrived is seen.
__device__ __forceinline__ void wait_for_cluster(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}

// --- TMA: a box of a 3-D tensor map (channel, row, image) into shared memory ---

__device__ __forceinline__ void prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Bytes of a box that lie outside the tensor arrive as zeros and count like the others.
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap* map, int32_t channel,
                                         int32_t row, int32_t image, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(channel), "r"(row), "r"(image), "r"(barrier)
      : "memory");
}
// The same into every block of `blocks` (bit r: rank r), at the same address in each; the bytes are
// counted at the barrier that has this address in the block that they arrive in.
__device__ __forceinline__ void load_box_everywhere(uint32_t to, const CUtensorMap* map,
                                                    int32_t channel, int32_t row, int32_t image,
                                                    uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(channel), "r"(row), "r"(image), "r"(barrier), "h"(blocks)
      : "memory");
}

// --- registers ---

// True in one thread of a converged warp, and the compiler knows that it is one.
__device__ __forceinline__ bool elected() {
  uint32_t is_elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(is_elected));
  return is_elected != 0;
}
// The same value, of which the compiler knows nothing: what is computed from it is computed again
// instead of being kept in registers. A shuffle, which it does not look through; all lanes call it.
__device__ __forceinline__ int32_t anew(int32_t value) {
  asm volatile("shfl.sync.bfly.b32 %0, %0, 0, 0x1f, 0xffffffff;" : "+r"(value));
  return value;
}
template <int COUNT>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- wgmma ---

// Before the first wgmma that touches registers which other instructions have touched.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most PENDING of the committed groups are incomplete.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// To the compiler, a write of d: nothing that reads d moves up across it.
template <int COUNT>
__device__ __forceinline__ void touch(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d (+)= A B^T for 64 rows of A, N rows of B and 32 bytes of K, all of the warpgroup's threads
// together; without `accumulate` d is not read. In `wgmma<N, T>::run`, T is the element type of
// both operands.
template <int N, typename T>
struct Wgmma;

#define INFODISENT_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define INFODISENT_D8(i) INFODISENT_D4(i), INFODISENT_D4((i) + 4)
#define INFODISENT_D16 INFODISENT_D8(0), INFODISENT_D8(8)
#define INFODISENT_D28 INFODISENT_D16, INFODISENT_D8(16), INFODISENT_D4(24)
#define INFODISENT_D52 INFODISENT_D28, INFODISENT_D8(28), INFODISENT_D8(36), INFODISENT_D8(44)
#define INFODISENT_D72                                                                         \
  INFODISENT_D8(0), INFODISENT_D8(8), INFODISENT_D8(16), INFODISENT_D8(24), INFODISENT_D8(32), \
      INFODISENT_D8(40), INFODISENT_D8(48), INFODISENT_D8(56), INFODISENT_D8(64)
#define INFODISENT_D76 INFODISENT_D72, INFODISENT_D4(72)
#define INFODISENT_D96 INFODISENT_D72, INFODISENT_D8(72), INFODISENT_D8(80), INFODISENT_D8(88)
#define INFODISENT_D100 INFODISENT_D96, INFODISENT_D4(96)
#define INFODISENT_R8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define INFODISENT_R16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define INFODISENT_R28 INFODISENT_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27"
#define INFODISENT_R52                                                                           \
  INFODISENT_R28                                                                                 \
  ", %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
  "%46, %47, %48, %49, %50, %51"
#define INFODISENT_R72                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "      \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, " \
  "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, " \
  "%69, %70, %71"
#define INFODISENT_R76 INFODISENT_R72 ", %72, %73, %74, %75"
#define INFODISENT_R96                                                       \
  INFODISENT_R76                                                             \
  ", %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, " \
  "%90, %91, %92, %93, %94, %95"
#define INFODISENT_R100 INFODISENT_R96 ", %96, %97, %98, %99"

// END: the immediates, factors 1 of A and B, and both K-major, which float8 always is.
#define INFODISENT_WGMMA(N, K, TYPE, NAME, END, D, R, A, B, P)                                     \
  template <>                                                                                      \
  struct Wgmma<N, TYPE> {                                                                          \
    static __device__ __forceinline__ void run(float (&d)[(N) / 2], uint64_t a, uint64_t b,        \
                                               int32_t accumulate) {                               \
      asm volatile(                                                                                \
          "{\n"                                                                                    \
          ".reg .pred p;\n"                                                                        \
          "setp.ne.b32 p, %" #P                                                                    \
          ", 0;\n"                                                                                 \
          "wgmma.mma_async.sync.aligned.m64n" #N K ".f32." NAME "." NAME " {" R "}, %" #A ", %" #B \
          ", p, " END                                                                              \
          ";\n"                                                                                    \
          "}\n"                                                                                    \
          : D                                                                                      \
          : "l"(a), "l"(b), "r"(accumulate)                                                        \
          : "memory");                                                                             \
    }                                                                                              \
  };
#define INFODISENT_WGMMAS(K, TYPE, NAME, END)                                           \
  INFODISENT_WGMMA(16, K, TYPE, NAME, END, INFODISENT_D8(0), INFODISENT_R8, 8, 9, 10)   \
  INFODISENT_WGMMA(32, K, TYPE, NAME, END, INFODISENT_D16, INFODISENT_R16, 16, 17, 18)  \
  INFODISENT_WGMMA(56, K, TYPE, NAME, END, INFODISENT_D28, INFODISENT_R28, 28, 29, 30)  \
  INFODISENT_WGMMA(104, K, TYPE, NAME, END, INFODISENT_D52, INFODISENT_R52, 52, 53, 54) \
  INFODISENT_WGMMA(144, K, TYPE, NAME, END, INFODISENT_D72, INFODISENT_R72, 72, 73, 74) \
  INFODISENT_WGMMA(152, K, TYPE, NAME, END, INFODISENT_D76, INFODISENT_R76, 76, 77, 78) \
  INFODISENT_WGMMA(192, K, TYPE, NAME, END, INFODISENT_D96, INFODISENT_R96, 96, 97, 98) \
  INFODISENT_WGMMA(200, K, TYPE, NAME, END, INFODISENT_D100, INFODISENT_R100, 100, 101, 102)
INFODISENT_WGMMAS("k16", __nv_bfloat16, "bf16", "1, 1, 0, 0")
INFODISENT_WGMMAS("k16", __half, "f16", "1, 1, 0, 0")
INFODISENT_WGMMAS("k32", __nv_fp8_e4m3, "e4m3", "1, 1")

// d (+)= A B for 64 rows of A, 16 of K and 256 columns of B: A in registers, B in shared memory
// with contiguous columns, which is what the last immediate says.
template <typename T>
struct WgmmaOfRegisters;

#define INFODISENT_D128 \
  INFODISENT_D96, INFODISENT_D8(96), INFODISENT_D8(104), INFODISENT_D8(112), INFODISENT_D8(120)
#define INFODISENT_R128                                                          \
  INFODISENT_R96                                                                 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, " \
  "%109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "     \
  "%121, %122, %123, %124, %125, %126, %127"
#define INFODISENT_WGMMA_OF_REGISTERS(TYPE, NAME)                                              \
  template <>                                                                                  \
  struct WgmmaOfRegisters<TYPE> {                                                              \
    static __device__ __forceinline__ void run(float (&d)[128], const uint32_t* a, uint64_t b, \
                                               int32_t accumulate) {                           \
      asm volatile(                                                                            \
          "{\n"                                                                                \
          ".reg .pred p;\n"                                                                    \
          "setp.ne.b32 p, %133, 0;\n"                                                          \
          "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {" INFODISENT_R128    \
          "}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n"                                   \
          "}\n"                                                                                \
          : INFODISENT_D128                                                                    \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)                \
          : "memory");                                                                         \
    }                                                                                          \
  };
INFODISENT_WGMMA_OF_REGISTERS(__nv_bfloat16, "bf16")
INFODISENT_WGMMA_OF_REGISTERS(__half, "f16")

}  // namespace sm90
}  // namespace infodisent
