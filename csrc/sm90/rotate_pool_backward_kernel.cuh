// The kernel behind rotate_pool_backward.h; rotate_pool_backward.cu launches it.
//
// A tile is 128 channels by 256 columns of dU; the product runs over the pixels of the images of
// one part of the batch. Three warpgroups: one brings x into a ring of slots in shared memory by
// TMA, one piece of K a slot; each of the two others multiplies 64 channels with all of it.
// Their left operand, the gradients at the winners and zeros elsewhere, is made in registers while
// the products of the piece before run. See grad_u_schedule.h for the operands.
//
// Blocks stay and take one tile after the other. With CLUSTER = 2 two blocks work on the same
// columns and neighbouring tiles of channels; each loads one half of the columns for both.
//
// 0 times Inf is NaN: what is not finite in x reaches sums that it is no part of. But it cannot
// hide there, and a sum that is finite is right: those that are not are formed again.
#pragma once
#include <type_traits>

#include "grad_u_schedule.h"
#include "ptx.cuh"
#include "ring.cuh"
#include "rotate_pool_backward.h"

namespace infodisent {
namespace sm90 {

template <typename T>
__device__ __forceinline__ uint32_t half_bits(float v) {
  if constexpr (std::is_same<T, __half>::value)
    return __half_as_ushort(__float2half_rn(v));
  else
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
template <typename T>
__device__ __forceinline__ float whole(uint32_t bits) {
  if constexpr (std::is_same<T, __half>::value)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  else
    return __uint_as_float(bits << 16);
}
__device__ __forceinline__ bool finite(float v) { return fabsf(v) <= 3.402823466e38f; }

struct GradArguments {
  CUtensorMap map;  // of x
  backward::Grid grid;
  int32_t images, pixels, channels;
  int32_t pitch;                         // rows of K from one image to the next
  const float *grad_pos, *grad_neg;      // [B, C]
  const int32_t *pos_index, *neg_index;  // [B, C]
  const float* scales;                   // [C] or null: 1
  const void* x;                         // [B, P, C]
  int64_t image_stride, pixel_stride;    // elements
  void* out;                             // [splits, C, C]
  bool out_half;                         // in the dtype of x, for one split; else float32
};

template <int PIECE, bool THROUGH, int CLUSTER, typename T>
struct GradKernel {
  static constexpr int STAGES = backward::stages_of(PIECE), GROUPS = kGroups;
  static constexpr int M = kTileChannels, N = backward::kTileColumns, ROWS = 16 * PIECE;
  static constexpr uint32_t BOX = backward::box_bytes(PIECE), SLOT = backward::slot_bytes(PIECE);
  static constexpr int SHARED = backward::shared_bytes(PIECE, STAGES);
  static_assert(SHARED <= kSharedLimit, "the slots must fit");
  static_assert(BOX % 1024 == 0, "the pattern of the swizzle begins at multiples of 1024");
  static_assert(M == 64 * GROUPS && N == 256, "64 rows and 128 registers of sums a warpgroup");

  // A slot holds boxes of x, of which in a cluster the other block sends half. Both warpgroups read
  // it.
  using Ring = sm90::Ring<STAGES, SLOT, 4 * GROUPS, CLUSTER>;

  // One thread. For every unit of the cluster and every piece of its images: wait until the slot
  // has been read, announce its bytes, start the copies.
  static __device__ __forceinline__ void produce(const GradArguments& a, Ring ring) {
    const int32_t rank = block_rank<CLUSTER>();
    Slot slot = {0, 0};
    for (int32_t number = blockIdx.x / CLUSTER; number < a.grid.units;
         number += gridDim.x / CLUSTER) {
      const backward::Unit unit = backward::unit_of(a.grid, number, a.images, CLUSTER, rank);
      const int32_t steps = backward::steps_of(unit.last - unit.first, a.pixels, a.pitch, PIECE);
      // through, the map is one image of all rows
      int32_t image = THROUGH ? 0 : unit.first;
      int32_t row = THROUGH ? unit.first * a.pitch : 0;
      for (int32_t step = 0; step < steps; ++step) {
        ring.wait_until_read(slot);
        const uint32_t full = ring.announce(slot.stage, SLOT);
        // rows beyond the last image, or each, are zeros, and so are columns beyond C
#pragma unroll
        for (int i = 0; i < backward::kBoxes / CLUSTER; ++i) {
          const int32_t box = rank * (backward::kBoxes / CLUSTER) + i;
          const uint32_t to = ring.slot(slot.stage) + box * BOX;
          const int32_t column = unit.n * N + box * backward::kBoxColumns;
          if (CLUSTER == 1)
            load_box(to, &a.map, column, row, image, full);
          else
            load_box_everywhere(to, &a.map, column, row, image, full, 3);
        }
        slot.advance(STAGES);
        row += ROWS;
        if (!THROUGH && row >= a.pitch) {
          row = 0;
          ++image;
        }
      }
    }
    ring.drain(slot);
  }

  // What a lane loads of an image: of channels `channel` and `channel` + 8.
  struct Loaded {
    float g_pos[2], g_neg[2];
    int32_t pos[2], neg[2];
  };
  // Nothing of images from `last` on, which are others' or none.
  static __device__ __forceinline__ void load(Loaded& loaded, const GradArguments& a, int32_t image,
                                              int32_t last, int32_t channel) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool there = image < last && channel + 8 * h < a.channels;
      const int64_t at = static_cast<int64_t>(image) * a.channels + channel + 8 * h;
      loaded.pos[h] = there ? __ldg(a.pos_index + at) : -1;
      loaded.neg[h] = there ? __ldg(a.neg_index + at) : -1;
      loaded.g_pos[h] = there ? __ldg(a.grad_pos + at) : 0.0f;
      loaded.g_neg[h] = there ? __ldg(a.grad_neg + at) : 0.0f;
    }
  }

  // One warpgroup, 64 channels of each tile.
  struct Consumer {
    const GradArguments& a;
    const Ring ring;
    const int lane;
    // of the unit
    int32_t channel, last;
    float scale[2];
    // the next piece to be made: where it begins
    int32_t image, pixel;
    backward::Winners here[2];  // of that image
    Loaded next;  // of the one after, or at its first piece of itself: on its way while the piece
                  // before is multiplied
    // the next slot to be read
    Slot slot;
    uint32_t before;

    __device__ __forceinline__ void begin(const backward::Unit& unit) {
      image = unit.first;
      last = unit.last;
      pixel = 0;
      load(next, a, image, last, channel);
      if constexpr (THROUGH) {
        take(here, 0);
        load(next, a, image + 1, last, channel);
      }
    }
    // What is loaded, of an image that begins at this row of the piece.
    __device__ __forceinline__ void take(backward::Winners (&winners)[2], int32_t row) const {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float g_pos = next.g_pos[h];
        int32_t neg = next.neg[h];
        backward::merge(g_pos, next.g_neg[h], next.pos[h], neg);
        winners[h] = backward::winners_of(half_bits<T>(g_pos * scale[h]),
                                          half_bits<T>(next.g_neg[h] * scale[h]), next.pos[h], neg,
                                          row, lane);
      }
    }
    __device__ __forceinline__ void make(uint32_t (&piece)[4 * PIECE]) {
      if constexpr (THROUGH) {
        backward::Winners after[2];
        take(after, a.pitch - pixel);
#pragma unroll
        for (int i = 0; i < 4 * PIECE; ++i)
          piece[i] = backward::fragment(here[i % 2], backward::row_of_register(i)) |
                     backward::fragment(after[i % 2], backward::row_of_register(i));
        pixel += ROWS;
        const bool over = pixel >= a.pitch;  // by no more than one image: choose_cut
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (over) here[h] = after[h];
          backward::move_on(here[h], ROWS);
        }
        if (over) {
          pixel -= a.pitch;
          ++image;
          load(next, a, image + 1, last, channel);
        }
      } else {
        if (pixel == 0) {
          take(here, 0);
          if (image + 1 < last) load(next, a, image + 1, last, channel);
        }
#pragma unroll
        for (int i = 0; i < 4 * PIECE; ++i)
          piece[i] = backward::fragment(here[i % 2], pixel + backward::row_of_register(i));
        pixel += ROWS;
        if (pixel >= a.pitch) {
          pixel = 0;
          ++image;
        }
      }
    }

    // Starts the products of a piece, and makes the next one once those before are done.
    __device__ __forceinline__ void step(float (&d)[N / 2], const uint32_t (&piece)[4 * PIECE],
                                         uint32_t (&after)[4 * PIECE], int32_t number) {
      wait(ring.full(slot.stage), slot.parity);
      wgmma_fence();
      const uint64_t x = backward::descriptor_of(ring.slot(slot.stage), PIECE);
#pragma unroll
      for (int k = 0; k < PIECE; ++k)
        WgmmaOfRegisters<T>::run(d, piece + 4 * k, x + backward::descriptor_step(k), number + k);
      wgmma_commit();
      // At most this step's products are still running: the slot before has been read, and so have
      // the registers that are written next.
      wgmma_wait<1>();
      if (number != 0) ring.release(before, lane);
      before = slot.stage;
      slot.advance(STAGES);
      make(after);
    }
  };

  static __device__ __forceinline__ void consume(const GradArguments& a, Ring ring, int warp,
                                                 int lane) {
    float d[N / 2];
    uint32_t even[4 * PIECE], odd[4 * PIECE];
    Consumer c = {a, ring, lane, 0, 0, {1.0f, 1.0f}, 0, 0, {}, {}, {0, 0}, 0};
    for (int32_t number = blockIdx.x / CLUSTER; number < a.grid.units;
         number += gridDim.x / CLUSTER) {
      const backward::Unit unit =
          backward::unit_of(a.grid, number, a.images, CLUSTER, block_rank<CLUSTER>());
      c.channel = unit.m * M + warp * 16 + lane / 4;
      if (std::is_same<T, __half>::value) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
          c.scale[h] = c.channel + 8 * h < a.channels ? __ldg(a.scales + c.channel + 8 * h) : 1.0f;
      }
      c.begin(unit);
      c.make(even);
      touch(d);
      const int32_t steps = backward::steps_of(unit.last - unit.first, a.pixels, a.pitch, PIECE);
      for (int32_t step = 0; step < steps; step += 2) {
        c.step(d, even, odd, step);
        if (step + 1 == steps) break;
        c.step(d, odd, even, step + 1);
      }
      wgmma_wait<0>();
      ring.release(c.before, lane);
      touch(d);
      // anew: what only the end needs is not kept in registers until then
      const backward::Unit done =
          backward::unit_of(a.grid, anew(number), a.images, CLUSTER, block_rank<CLUSTER>());
      if (a.out_half)
        write<true>(a, d, done, c.channel, c.scale, lane);
      else
        write<false>(a, d, done, c.channel, c.scale, lane);
    }
  }

  // Two neighbours in a row of the result.
  template <bool HALF>
  static __device__ __forceinline__ void store(void* out, int64_t at, float v0, float v1) {
    if constexpr (HALF)
      reinterpret_cast<uint32_t*>(out)[at / 2] = half_bits<T>(v0) | half_bits<T>(v1) << 16;
    else
      reinterpret_cast<float2*>(out)[at / 2] = make_float2(v0, v1);
  }
  template <bool HALF>
  static __device__ __forceinline__ float2 stored(const void* out, int64_t at) {
    if constexpr (HALF) {
      const uint32_t both = reinterpret_cast<const uint32_t*>(out)[at / 2];
      return make_float2(whole<T>(both & 0xffff), whole<T>(both >> 16));
    } else {
      return reinterpret_cast<const float2*>(out)[at / 2];
    }
  }

  template <bool HALF>
  static __device__ __forceinline__ void write(const GradArguments& a, const float (&d)[N / 2],
                                               const backward::Unit& unit, int32_t channel,
                                               const float (&scale)[2], int lane) {
    const int64_t size = static_cast<int64_t>(a.channels) * a.channels;
    const int32_t first = unit.n * N + 2 * (lane % 4);
    float check = 0.0f;  // becomes NaN by what is not finite
#pragma unroll
    for (int i = 0; i < N / 2; ++i) check = fmaf(d[i], 0.0f, check);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t row = channel + 8 * h;
      if (row >= a.channels) break;
      const int64_t to = unit.split * size + static_cast<int64_t>(row) * a.channels;
      const float inverse = 1.0f / scale[h];  // exact: a power of two
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        const int32_t column = first + 8 * j;
        const float v0 = d[4 * j + 2 * h] * inverse, v1 = d[4 * j + 2 * h + 1] * inverse;
        if (column < a.channels) store<HALF>(a.out, to + column, v0, v1);
      }
    }
    if (check != 0.0f) again<HALF>(a, unit, channel, first);
  }

  // Whether a gradient of this channel is not finite: then no sum of its row is, by the formula
  // either. So it is where mixed precision has overflowed, a step that is thrown away.
  static __device__ __forceinline__ bool overflowed(const GradArguments& a,
                                                    const backward::Unit& unit, int32_t row) {
    bool finite_all = true;
#pragma unroll 1
    for (int32_t image = unit.first; image < unit.last && row < a.channels; ++image) {
      const int64_t at = static_cast<int64_t>(image) * a.channels + row;
      const bool pos = __ldg(a.pos_index + at) < 0 || finite(__ldg(a.grad_pos + at));
      const bool neg = __ldg(a.neg_index + at) < 0 || finite(__ldg(a.grad_neg + at));
      finite_all = finite_all && pos && neg;
    }
    return !finite_all;
  }

  // Those of a thread's sums that are not finite, from the winners alone. Slow, and rare: an Inf or
  // NaN in x. Rows whose gradients have overflowed stay as they are.
  template <bool HALF>
  static __device__ __forceinline__ void again(const GradArguments& a, const backward::Unit& unit,
                                               int32_t channel, int32_t first) {
    const int64_t size = static_cast<int64_t>(a.channels) * a.channels;
    const uint16_t* const x = static_cast<const uint16_t*>(a.x);
    bool skipped = false;
#pragma unroll 1
    for (int i = 0; i < N / 4; ++i) {  // first one row, then the other
      const int32_t row = channel + i / (N / 8) * 8, column = first + i % (N / 8) * 8;
      if (i % (N / 8) == 0) skipped = overflowed(a, unit, row);
      if (skipped || row >= a.channels || column >= a.channels) continue;
      const int64_t to = unit.split * size + static_cast<int64_t>(row) * a.channels + column;
      float2 v = stored<HALF>(a.out, to);  // this thread's own
      const bool wrong0 = !finite(v.x), wrong1 = !finite(v.y);
      if (!wrong0 && !wrong1) continue;
      float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 1
      for (int32_t image = unit.first; image < unit.last; ++image) {
        const int64_t at = static_cast<int64_t>(image) * a.channels + row;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int32_t pixel = __ldg((side == 0 ? a.pos_index : a.neg_index) + at);
          if (pixel < 0) continue;
          const float g = __ldg((side == 0 ? a.grad_pos : a.grad_neg) + at);
          const uint16_t* const from = x + image * a.image_stride + pixel * a.pixel_stride + column;
          sum.x += g * whole<T>(from[0]);
          sum.y += g * whole<T>(from[1]);
        }
      }
      store<HALF>(a.out, to, wrong0 ? sum.x : v.x, wrong1 ? sum.y : v.y);
    }
  }
};

template <int PIECE, bool THROUGH, int CLUSTER, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    grad_u_kernel(const __grid_constant__ GradArguments a) {
  using K = GradKernel<PIECE, THROUGH, CLUSTER, T>;
  const typename K::Ring ring = {K::Ring::first_slot()};
  // the same in all lanes, and known to be to the compiler
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ring.init();
    barrier_init_fence();
    prefetch(&a.map);
  }
  barriers_ready<CLUSTER>();
  if (warp >= 4 * K::GROUPS) {
    fewer_registers<kProducerRegisters>();
    if (warp == 4 * K::GROUPS && elected()) K::produce(a, ring);
  } else {
    more_registers<kConsumerRegisters>();
    K::consume(a, ring, warp, lane);
  }
}

}  // namespace sm90
}  // namespace infodisent
