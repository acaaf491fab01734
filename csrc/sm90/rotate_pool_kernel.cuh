// The kernel behind rotate_pool.h; rotate_pool.cu chooses and launches it.
//
// A tile is M = 128 (or 64) output channels by N pixels. Three warpgroups: one brings U and x into
// a ring of slots in shared memory by TMA; the two others take turns ("pingpong"), each computing a
// whole tile by wgmma, so that the epilogue of one runs beside the products of the other. Channels
// are the rows of the product: the pool runs along a row, which four lanes hold.
//
// Blocks stay and take one tile after the other. With CLUSTER = 2 two blocks work on the same
// pixels and neighbouring tiles of channels; each loads one half of the pixels for both.
//
// Programmatic dependent launch is left out: what follows in the head is one small product, and
// without a measurement of what the overlap gains its preconditions (the follower may not touch any
// output before griddepcontrol.wait) are not worth imposing on callers.
#pragma once
#include <type_traits>

#include "float8.h"
#include "packed_key.h"
#include "ptx.cuh"
#include "ring.cuh"
#include "rotate_pool.h"
#include "tile_schedule.h"

namespace infodisent {
namespace sm90 {

struct Arguments {
  CUtensorMap u, u_low, x, x_low;  // [C, C], [n, P, C] or [1, rows, C]; low: copies of the others
                                   // where there is only one product
  Layout layout;
  int32_t images, pixels, channels;
  int32_t groups;      // channel_groups(channels, CLUSTER, M)
  int32_t units;       // groups * layout.tiles
  int32_t segments;    // products to add up: 1, or 3
  uint32_t box_bytes;  // of x, that one block's slot gets
  uint32_t mask;       // of packed keys
  float *pos, *neg;
  int32_t *pos_index, *neg_index;
  void* keys;
  const float *u_scale, *x_scale;  // [C], [n]: of float8, else null
};

template <int KIND, bool EXACT, int CLUSTER, typename T>
struct Kernel {
  static constexpr TileShape kTile = kTiles[KIND];
  static constexpr int N = kTile.columns, STAGES = kTile.stages;
  static constexpr int M = kTile.channels, PARTS = M / 64;  // products a part of K
  static constexpr int HALF = slot_rows(N) / 2, HALF_BYTES = half_bytes(N);
  static constexpr int BLOCK_K = block_k(sizeof(T));
  static constexpr bool FLOAT8 = sizeof(T) == 1;
  static_assert(!(FLOAT8 && EXACT), "float8 has packed keys only");
  static constexpr uint32_t U_BYTES = M * kRowBytes;
  static constexpr uint32_t SLOT = slot_bytes(M, N);
  static constexpr int SHARED = shared_bytes(kTile);
  static_assert(SHARED <= kSharedLimit, "the slots must fit");
  static_assert(SLOT % 1024 == 0 && U_BYTES % 1024 == 0, "groups of 8 rows begin at 1024");
  static_assert(kTile.images * kTile.pixels <= N && N % 8 == 0 && N <= 256, "a wgmma of N columns");
  static_assert(kTile.images <= 4, "each of the four lanes of a row writes one image");

  static_assert(M == 64 * PARTS && (PARTS == 1 || PARTS == 2), "products of 64 channels");

  // A slot holds U [M, BLOCK_K] and then x [slot_rows, BLOCK_K], of which in a cluster the other
  // block sends half. One warpgroup reads it.
  struct Ring : sm90::Ring<STAGES, SLOT, 4, CLUSTER> {
    __device__ __forceinline__ uint32_t u(uint32_t stage) const { return this->slot(stage); }
    __device__ __forceinline__ uint32_t x(uint32_t stage) const { return u(stage) + U_BYTES; }
    __device__ __forceinline__ uint32_t turn(uint32_t group) const {
      return this->end() + group * 8;
    }
  };

  // One thread. For every unit of the cluster and every step along K: wait until the slot has been
  // read, announce its bytes, start the copies.
  static __device__ __forceinline__ void produce(const Arguments& a, Ring ring, int32_t rank,
                                                 int32_t cluster_id, int32_t clusters) {
    const int32_t steps = (a.channels + BLOCK_K - 1) / BLOCK_K;
    Slot slot = {0, 0};
    for (int32_t unit = cluster_id; unit < a.units; unit += clusters) {
      const Work work = work_of(unit, a.groups, CLUSTER, rank);
      const int32_t row = work.n % a.layout.blocks * a.layout.row_step;
      const int32_t image = work.n / a.layout.blocks * a.layout.image_step;
      for (int32_t segment = 3 - a.segments; segment < 3; ++segment) {
        const CUtensorMap* u = segment == 1 ? &a.u_low : &a.u;
        const CUtensorMap* x = segment == 0 ? &a.x_low : &a.x;
        for (int32_t k = 0; k < steps; ++k) {
          ring.wait_until_read(slot);
          const uint32_t full = ring.announce(slot.stage, U_BYTES + a.box_bytes);
          // rows beyond C and pixels beyond P (or n P) are zeros; so are channels beyond C, on both
          // sides of the product
          load_box(ring.u(slot.stage), u, k * BLOCK_K, work.m * M, 0, full);
          if (CLUSTER == 1) {
            load_box(ring.x(slot.stage), x, k * BLOCK_K, row, image, full);
          } else {
            load_box_everywhere(ring.x(slot.stage) + rank * HALF_BYTES, x, k * BLOCK_K,
                                row + rank * HALF, image, full, 3);
          }
          slot.advance(STAGES);
        }
      }
    }
    ring.drain(slot);
  }

  // One warpgroup. `group` 0 or 1 takes the units of even or odd turns.
  //
  // Turns: a warpgroup may start on a tile's slots after the other has seen all slots of the tile
  // before arrive. That keeps the tensor cores on one tile at a time, and it is needed: a wait for
  // use u of a slot means something only when use u - 1 has arrived, as phases are told apart by
  // parity. "turn" of a group has 4 arrivals, one of each warp of the other group, after its last
  // wait on "full". Group 0 waits for the phase before the first at first, which counts as
  // complete. Neither group can be two phases ahead of the other, since each waits for the other in
  // between.
  static __device__ __forceinline__ void consume(const Arguments& a, Ring ring, int32_t rank,
                                                 int32_t cluster_id, int32_t clusters, int group,
                                                 int warp, int lane) {
    const uint32_t steps = static_cast<uint32_t>((a.channels + BLOCK_K - 1) / BLOCK_K * a.segments);
    float d[PARTS][N / 2];  // 64 channels each
    uint32_t turn_parity = group == 0 ? 1 : 0;
    uint32_t first_step = group * steps;
    for (int32_t unit = unit_of(group, cluster_id, clusters); unit < a.units;
         unit += kGroups * clusters) {
      Slot slot = Slot::at(first_step, STAGES);
      first_step += kGroups * steps;
      wait(ring.turn(group), turn_parity);
      turn_parity ^= 1;
#pragma unroll
      for (int m = 0; m < PARTS; ++m) touch(d[m]);
      uint32_t before = 0;
      for (uint32_t step = 0; step < steps; ++step) {
        wait(ring.full(slot.stage), slot.parity);
        // What TMA wrote is visible: its bytes completed the barrier this thread waited for.
        wgmma_fence();
        const uint64_t u = descriptor_of(ring.u(slot.stage));
        const uint64_t x = descriptor_of(ring.x(slot.stage));
#pragma unroll
        for (int k = 0; k < kRowBytes / kPartBytes; ++k) {
#pragma unroll
          for (int m = 0; m < PARTS; ++m)
            Wgmma<N, T>::run(d[m], u + descriptor_step(m, k), x + descriptor_step(0, k), step + k);
        }
        wgmma_commit();
        // At most this step's products are still running: the slot before has been read.
        wgmma_wait<1>();
        if (step != 0) ring.release(before, lane);
        before = slot.stage;
        slot.advance(STAGES);
      }
      // The other group's products may queue up behind the last of these.
      if (lane == 0) arrive(ring.turn(group ^ 1));
      wgmma_wait<0>();
      ring.release(before, lane);
      // The epilogue depends on this, and so comes after the release: the compiler would put the
      // release off until half of the epilogue is done. With EXACT it spills then (but for 3x64,
      // which spills without); its products take three times as long, and there a late release
      // matters less.
      const int same_lane = EXACT && kTile.pixels != 64 ? lane : anew(lane);
#pragma unroll
      for (int m = 0; m < PARTS; ++m) touch(d[m]);
      const Work work = work_of(unit, a.groups, CLUSTER, rank);
#pragma unroll
      for (int m = 0; m < PARTS; ++m) {
        const int32_t channel = work.m * M + m * 64 + warp * 16 + same_lane / 4;
        if constexpr (kTile.images == 0)
          merge(a, d[m], work.n, channel, same_lane);
        else
          write(a, d[m], work.n * kTile.images, channel, same_lane);
      }
    }
  }

  // Over the four lanes that hold a row.
  static __device__ __forceinline__ Keys across(Keys keys) {
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2)
      keys = merged(keys, {__shfl_xor_sync(~0u, keys.largest, lane),
                           __shfl_xor_sync(~0u, keys.smallest, lane)});
    return keys;
  }
  static __device__ __forceinline__ Extremes across(Extremes extremes) {
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2)
      extremes = merged(extremes, {__shfl_xor_sync(~0u, extremes.largest, lane),
                                   __shfl_xor_sync(~0u, extremes.smallest, lane),
                                   __shfl_xor_sync(~0u, extremes.at_largest, lane),
                                   __shfl_xor_sync(~0u, extremes.at_smallest, lane)});
    return extremes;
  }

  // Whole images: the results, image i of the tile by lane i of the four. d is channel and
  // channel + 8 of images first, first + 1, ...
  static __device__ __forceinline__ void write(const Arguments& a, const float (&d)[N / 2],
                                               int32_t first, int32_t channel, int lane) {
    const int32_t quad = lane % 4, image = first + quad;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::conditional_t<EXACT, Extremes, Keys> mine = {};
#pragma unroll
      for (int i = 0; i < kTile.images; ++i) {
        if constexpr (EXACT) {
          const Extremes extremes = across(extremes_of_image<N, kTile.pixels>(d, h, i, quad));
          if (quad == i) mine = extremes;
        } else {
          const Keys keys = across(keys_of_image<N, kTile.pixels>(d, h, i, quad, ~a.mask));
          if (quad == i) mine = keys;
        }
      }
      const int32_t row = channel + 8 * h;
      if (quad < kTile.images && image < a.images && row < a.channels) {
        Pooled result;
        if constexpr (EXACT)
          result = pooled(mine);
        else
          result = unpacked(sides_of(mine.largest, mine.smallest), mask_of(kTile.pixels));
        if constexpr (FLOAT8) result = scaled(result, a.u_scale[row], a.x_scale[image]);
        const int64_t to = static_cast<int64_t>(image) * a.channels + row;
        a.pos[to] = result.pos;
        a.neg[to] = result.neg;
        a.pos_index[to] = result.pos_index;
        a.neg_index[to] = result.neg_index;
      }
    }
  }

  // Columns across the borders of images: what the tile has of each image goes into a.keys, lane 0
  // of the four for pos and lane 1 for neg. Columns of rows between images are pixels of none.
  static __device__ __forceinline__ void merge(const Arguments& a, const float (&d)[N / 2],
                                               int32_t n, int32_t channel, int lane) {
    const int32_t quad = lane % 4;
    const Run run = run_of(n, a.images, N, a.layout);
    const int32_t pitch = a.layout.pitch;
    int32_t shift = run.pixel;
    for (int32_t i = 0; i < run.images; ++i, shift -= pitch) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int32_t row = channel + 8 * h;
        const int64_t to =
            (static_cast<int64_t>(quad) * a.images + run.image + i) * a.channels + row;
        const bool mine = quad < 2 && row < a.channels;
        if constexpr (EXACT) {
          const Extremes extremes = across(extremes_of_run<N>(d, h, anew(quad), shift, a.pixels));
          const Sides sides = sides_of(extremes.largest, extremes.smallest);
          const uint64_t key = quad == 0 ? wide_key(sides.pos, extremes.at_largest)
                                         : wide_key(sides.neg, extremes.at_smallest);
          if (mine && key != 0) atomicMax(static_cast<unsigned long long*>(a.keys) + to, key);
        } else {
          const Keys keys = across(keys_of_run<N>(d, h, anew(quad), shift, a.pixels, a.mask));
          const Sides sides = sides_of(keys.largest, keys.smallest);
          const int32_t key = static_cast<int32_t>(quad == 0 ? sides.pos : sides.neg);
          if (mine && key != 0) atomicMax(static_cast<int32_t*>(a.keys) + to, key);
        }
      }
    }
  }
};

template <int KIND, bool EXACT, int CLUSTER, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    rotate_pool_kernel(const __grid_constant__ Arguments a) {
  using K = Kernel<KIND, EXACT, CLUSTER, T>;
  const typename K::Ring ring = {{K::Ring::first_slot()}};
  const int32_t rank = block_rank<CLUSTER>();
  const int32_t cluster_id = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
  // the same in all lanes, and known to be to the compiler
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ring.init();
    for (int group = 0; group < kGroups; ++group) barrier_init(ring.turn(group), 4);
    barrier_init_fence();
    prefetch(&a.u);
    prefetch(&a.x);
  }
  barriers_ready<CLUSTER>();
  if (warp >= 4 * kGroups) {
    fewer_registers<kProducerRegisters>();
    if (warp == 4 * kGroups && elected()) K::produce(a, ring, rank, cluster_id, clusters);
  } else {
    more_registers<kConsumerRegisters>();
    K::consume(a, ring, rank, cluster_id, clusters, warp / 4, warp % 4, lane);
  }
}

}  // namespace sm90
}  // namespace infodisent
