// What the kernels for Hopper have in common besides their products: a block of three warpgroups of
// which one brings operands into a ring of slots in shared memory by TMA and two multiply, and the
// barriers of that ring, in one block or in a pair that shares a part of each slot (CLUSTER = 2).
#pragma once
#include <cuda.h>

#include <cstdint>

#include "ptx.cuh"
#include "tile_schedule.h"

namespace infodisent {
namespace sm90 {

constexpr int kThreads = 128 * (kGroups + 1);
// 384 threads are launched with 168 registers each, all that there are (65536 / 384, in eights).
// The producer gives away what the consumers take: 128 * 24 + 256 * 240 = 384 * 168. Every warp of
// a warpgroup executes its setmaxnreg, the four producer warps too of which only one goes on.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

// Shared memory, from a multiple of 1024 on: STAGES slots of SLOT bytes, then the barriers. The
// offset is the same in every block of a cluster, which multicast and remote arrivals rely on.
//
// "full" of a slot: 1 arrival, the producer's, and all bytes of the slot, a part of which in a
// cluster the other block sends. Those may arrive before the announcement: the count of bytes then
// goes below zero for a while, but the phase cannot complete before this producer's arrival. They
// cannot arrive while the phase before is incomplete: the other block sends for use u after its
// "empty" has the arrivals of this block's consumers for use u - 1, and those come after phase
// u - 1 of "full" here.
//
// "empty" of a slot: READERS arrivals, one of each warp that reads a use of it, and in a cluster as
// many of the other block: what a producer sends overwrites a part of the slot in both.
template <int STAGES, uint32_t SLOT, int READERS, int CLUSTER>
struct Ring {
  uint32_t base;

  static __device__ __forceinline__ uint32_t first_slot() {
    return (dynamic_shared() + 1023) & ~1023u;
  }
  __device__ __forceinline__ uint32_t slot(uint32_t stage) const { return base + stage * SLOT; }
  __device__ __forceinline__ uint32_t full(uint32_t stage) const {
    return base + STAGES * SLOT + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(uint32_t stage) const {
    return full(stage) + STAGES * 8;
  }
  // Where the barriers end: room for those of one kernel.
  __device__ __forceinline__ uint32_t end() const { return base + STAGES * (SLOT + 16); }

  // One thread, before barriers_ready.
  __device__ __forceinline__ void init() const {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), READERS * CLUSTER);
    }
  }

  // The producer: waits until the slot has been read everywhere.
  __device__ __forceinline__ void wait_until_read(Slot at) const {
    wait(empty(at.stage), at.parity ^ 1);
  }
  // The producer: announces so many bytes, and returns the barrier that counts them.
  __device__ __forceinline__ uint32_t announce(uint32_t stage, uint32_t bytes) const {
    const uint32_t barrier = full(stage);
    arrive_expect(barrier, bytes);
    return barrier;
  }
  // The producer, at its end. A block of a cluster must not end before the other is done with it.
  // Once every slot has been read in both blocks, all copies that involve this block have landed
  // and all arrivals at its barriers have come. (A slot that was never used passes, as it did
  // before its first use.)
  __device__ __forceinline__ void drain(Slot at) const {
    if constexpr (CLUSTER > 1) {
      for (int i = 0; i < STAGES; ++i) {
        wait_until_read(at);
        at.advance(STAGES);
      }
    }
  }
  // A warp has read the slot.
  __device__ __forceinline__ void release(uint32_t stage, int lane) const {
    if (CLUSTER == 1) {
      if (lane == 0) arrive(empty(stage));
    } else {
      if (lane < CLUSTER) arrive_at(empty(stage), lane);
    }
  }
};

// All threads, after the inits: no copy or arrival may come from the other block before its
// barriers exist here.
template <int CLUSTER>
__device__ __forceinline__ void barriers_ready() {
  if (CLUSTER == 1)
    __syncthreads();
  else
    cluster_sync();
}

template <int CLUSTER>
__device__ __forceinline__ int32_t block_rank() {
  return CLUSTER == 1 ? 0 : static_cast<int32_t>(cluster_rank());
}

}  // namespace sm90
}  // namespace infodisent
