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
// Where a tile has parts, so many blocks have one tile together: part of the pixels of an image
// each. Each loads a part of U for all of them, and in the end they send what they have of a row of
// the product to the block that writes it. Such a cluster computes one tile and ends.
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
  static constexpr int M = kTile.channels, PRODUCTS = M / 64;  // of each part of K
  static constexpr int PARTS = kTile.parts, BLOCKS = CLUSTER * PARTS;
  static_assert(PARTS == 1 || (PARTS == 4 && CLUSTER == 1 && M == 4 * kPartRows && M == 64),
                "a block writes the rows of one warp");
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

  static_assert(M == 64 * PRODUCTS && (PRODUCTS == 1 || PRODUCTS == 2), "products of 64 channels");

  // A slot holds U [M, BLOCK_K] and then x [slot_rows, BLOCK_K], of which in a cluster the other
  // block sends half. One warpgroup reads it.
  struct Ring : sm90::Ring<STAGES, SLOT, 4, BLOCKS> {
    __device__ __forceinline__ uint32_t u(uint32_t stage) const { return this->slot(stage); }
    __device__ __forceinline__ uint32_t x(uint32_t stage) const { return u(stage) + U_BYTES; }
    __device__ __forceinline__ uint32_t turn(uint32_t group) const {
      return this->end() + group * 8;
    }
    // Of the parts of an image: arrivals of those that send, and where they send to.
    __device__ __forceinline__ uint32_t sent() const { return turn(kGroups); }
    __device__ __forceinline__ uint32_t entry(int32_t part, int32_t row) const {
      return sent() + 16 + (part * kPartRows + row) * kPartEntry;
    }
  };

  // One thread. For every unit of the cluster and every step along K: wait until the slot has been
  // read, announce its bytes, start the copies.
  static __device__ __forceinline__ void produce(const Arguments& a, Ring ring, int32_t rank,
                                                 int32_t cluster_id, int32_t clusters) {
    const int32_t steps = (a.channels + BLOCK_K - 1) / BLOCK_K;
    Slot slot = {0, 0};
    for (int32_t unit = cluster_id; unit < a.units; unit += clusters) {
      const Work work = work_of(unit, a.groups, CLUSTER, PARTS > 1 ? 0 : rank);
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
          if (PARTS == 1)
            load_box(ring.u(slot.stage), u, k * BLOCK_K, work.m * M, 0, full);
          else
            load_box_everywhere(ring.u(slot.stage) + rank * (U_BYTES / PARTS), u, k * BLOCK_K,
                                work.m * M + rank * (M / PARTS), 0, full, (1 << PARTS) - 1);
          if (PARTS > 1) {
            load_box(ring.x(slot.stage), x, k * BLOCK_K, rank * N, image, full);
          } else if (CLUSTER == 1) {
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
    float d[PRODUCTS][N / 2];  // 64 channels each
    uint32_t turn_parity = group == 0 ? 1 : 0;
    uint32_t first_step = group * steps;
    for (int32_t unit = unit_of(group, cluster_id, clusters); unit < a.units;
         unit += kGroups * clusters) {
      Slot slot = Slot::at(first_step, STAGES);
      first_step += kGroups * steps;
      wait(ring.turn(group), turn_parity);
      turn_parity ^= 1;
#pragma unroll
      for (int m = 0; m < PRODUCTS; ++m) touch(d[m]);
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
          for (int m = 0; m < PRODUCTS; ++m)
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
      for (int m = 0; m < PRODUCTS; ++m) touch(d[m]);
      const Work work = work_of(unit, a.groups, CLUSTER, PARTS > 1 ? 0 : rank);
#pragma unroll
      for (int m = 0; m < PRODUCTS; ++m) {
        const int32_t channel = work.m * M + m * 64 + warp * 16 + same_lane / 4;
        if constexpr (PARTS > 1)
          exchange(a, d[m], ring, work, rank, warp, same_lane);
        else if constexpr (kTile.images == 0)
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

  // A part of an image: what it has of rows 16 w ... goes from warp w of each block to block w,
  // whose warp w merges and writes.
  static __device__ __forceinline__ void exchange(const Arguments& a, const float (&d)[N / 2],
                                                  Ring ring, const Work& work, int32_t rank,
                                                  int warp, int lane) {
    const int32_t quad = lane % 4, first = rank * N;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Extremes all = {};
      if constexpr (EXACT) {
        all = across(extremes_of_run<N>(d, h, quad, first, a.pixels));
      } else {
        const Keys keys = across(keys_of_run<N>(d, h, quad, first, a.pixels, a.mask));
        all = {keys.largest, keys.smallest, 0, 0};
      }
      if (quad == 0)
        store_at(ring.entry(rank, lane / 4 + 8 * h), warp,
                 {static_cast<uint32_t>(all.largest), all.smallest,
                  static_cast<uint32_t>(all.at_largest), static_cast<uint32_t>(all.at_smallest)});
    }
    if (quad == 0) publish_at(ring.sent(), warp);
    if (warp != rank) return;
    wait_for_cluster(ring.sent(), 0);
    const int32_t row = work.m * M + warp * kPartRows + lane;
    if (lane >= kPartRows || row >= a.channels) return;
    std::conditional_t<EXACT, Extremes, Keys> found = {};
    if constexpr (EXACT) found = kNothing;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const Words words = load_words(ring.entry(part, lane));
      if constexpr (EXACT)
        found = merged(found, {static_cast<int32_t>(words.w[0]), words.w[1],
                               static_cast<int32_t>(words.w[2]), static_cast<int32_t>(words.w[3])});
      else
        found = merged(found, {static_cast<int32_t>(words.w[0]), words.w[1]});
    }
    put(a, found, work.n, row, a.mask);
  }

  // The results of one channel of one image.
  template <typename FOUND>
  static __device__ __forceinline__ void put(const Arguments& a, FOUND found, int32_t image,
                                             int32_t row, uint32_t mask) {
    Pooled result;
    if constexpr (EXACT)
      result = pooled(found);
    else
      result = unpacked(sides_of(found.largest, found.smallest), mask);
    if constexpr (FLOAT8) result = scaled(result, a.u_scale[row], a.x_scale[image]);
    const int64_t to = static_cast<int64_t>(image) * a.channels + row;
    a.pos[to] = result.pos;
    a.neg[to] = result.neg;
    a.pos_index[to] = result.pos_index;
    a.neg_index[to] = result.neg_index;
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
      if (quad < kTile.images && image < a.images && row < a.channels)
        put(a, mine, image, row, mask_of(kTile.pixels));
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
  const int32_t rank = block_rank<K::BLOCKS>();
  const int32_t cluster_id = blockIdx.x / K::BLOCKS, clusters = gridDim.x / K::BLOCKS;
  // the same in all lanes, and known to be to the compiler
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ring.init();
    for (int group = 0; group < kGroups; ++group) barrier_init(ring.turn(group), 4);
    // of each block the eight lanes of a warp that have rows
    if (K::PARTS > 1) barrier_init(ring.sent(), K::PARTS * 8);
    barrier_init_fence();
    prefetch(&a.u);
    prefetch(&a.x);
  }
  barriers_ready<K::BLOCKS>();
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
