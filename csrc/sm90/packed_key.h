// What the epilogue of rotate_pool_kernel.cuh computes from the accumulators of one thread, and
// how the results of several threads, tiles and sides become results. Integers only, and nothing of
// CUDA, so that tests/cuda/rotate_pool_model.cpp runs these same functions on the CPU.
//
// As signed integers the bits of positive floats order as the floats do and above all negative
// ones; as unsigned integers those of negative floats order by magnitude and above all positive
// ones. So one key serves both sides. A packed key is the bits of the value with `mask - pixel` for
// the last ones (mask = 2^n - 1 >= P - 1): of equal values the lowest pixel is the maximum, and
// maxima of integers merge lanes and tiles in any order. It costs the value its last n = (P -
// 1).bit_length() bits: what comes out is at most 2^-(23 - n) below the value, relative, and never
// above; values that agree in what is kept are ties, and magnitudes below 2^(n - 149) are 0.
// Kernels for P <= 1024 and half maps use packed keys; others compare whole values and look for the
// pixel in a second sweep ("exact").
//
// Inf keeps its bits when packed into, as an integer it may look like a NaN: so what a key means is
// decided after its low bits are taken off. A NaN must then still be one, that is, have one of its
// upper bits set. The tensor cores write 0x7fffffff, and any quiet NaN has bit 22.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define INFODISENT_BOTH __host__ __device__ __forceinline__
#else
#define INFODISENT_BOTH inline
#endif
#if defined(__CUDA_ARCH__)
#define INFODISENT_UNROLL _Pragma("unroll")
#else
#define INFODISENT_UNROLL
#endif

namespace infodisent {

constexpr uint32_t kInfinity = 0x7f800000u;  // bits of Inf; what is above, without sign, is NaN
constexpr uint32_t kSign = 0x80000000u;
constexpr uint32_t kNaN = 0x7fc00000u;
constexpr int32_t kNowhere = 0x7fffffff;  // above every pixel
constexpr int kPackedPixels = 1024;       // most pixels for which value and pixel share 32 bits

INFODISENT_BOTH uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}
INFODISENT_BOTH float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

template <typename T>
INFODISENT_BOTH T larger(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
INFODISENT_BOTH T smaller(T a, T b) {
  return a < b ? a : b;
}

// The last bits that pixels of 0 ... P - 1 need.
INFODISENT_BOTH constexpr uint32_t mask_of(int32_t pixels) {
  uint32_t mask = 0;
  while (static_cast<uint32_t>(pixels - 1) > mask) mask = 2 * mask + 1;
  return mask;
}

// Largest key as a signed integer and as an unsigned one; {0, 0} is nothing, as is a pixel of +0.
struct Keys {
  int32_t largest;
  uint32_t smallest;
};
INFODISENT_BOTH Keys merged(Keys a, Keys b) {
  return {larger(a.largest, b.largest), larger(a.smallest, b.smallest)};
}
INFODISENT_BOTH void add(Keys& keys, uint32_t key) {
  keys.largest = larger(keys.largest, static_cast<int32_t>(key));
  keys.smallest = larger(keys.smallest, key);
}
// Whole values, and the first column or pixel of each.
struct Extremes {
  int32_t largest;
  uint32_t smallest;
  int32_t at_largest, at_smallest;
};
constexpr Extremes kNothing = {0, 0, kNowhere, kNowhere};
INFODISENT_BOTH Extremes merged(Extremes a, Extremes b) {
  const bool pos = b.largest > a.largest || (b.largest == a.largest && b.at_largest < a.at_largest);
  const bool neg =
      b.smallest > a.smallest || (b.smallest == a.smallest && b.at_smallest < a.at_smallest);
  return {pos ? b.largest : a.largest, neg ? b.smallest : a.smallest,
          pos ? b.at_largest : a.at_largest, neg ? b.at_smallest : a.at_smallest};
}
// In the order of columns: of equal values the first one stays.
INFODISENT_BOTH void add(Extremes& extremes, uint32_t bits, int32_t column) {
  const bool pos = static_cast<int32_t>(bits) > extremes.largest, neg = bits > extremes.smallest;
  extremes.largest = pos ? static_cast<int32_t>(bits) : extremes.largest;
  extremes.at_largest = pos ? column : extremes.at_largest;
  extremes.smallest = neg ? bits : extremes.smallest;
  extremes.at_smallest = neg ? column : extremes.at_smallest;
}
INFODISENT_BOTH Extremes moved(Extremes extremes, int32_t columns) {
  if (extremes.at_largest != kNowhere) extremes.at_largest += columns;
  if (extremes.at_smallest != kNowhere) extremes.at_smallest += columns;
  return extremes;
}
// Bits of a value, the same ones for every NaN, so that the first of them is found.
INFODISENT_BOTH uint32_t plain_bits(float value) { return value != value ? kNaN : bits_of(value); }

// `keep` is ~mask. A function argument of its own, because a kernel that gets it at run time needs
// one logical operation where `low` is a constant, and two where both are: an instruction holds
// one.
INFODISENT_BOTH uint32_t packed(uint32_t bits, uint32_t low, uint32_t keep) {
  return (bits & keep) | low;
}
INFODISENT_BOTH uint32_t low_bits(int32_t pixel, uint32_t mask) {
  return mask - static_cast<uint32_t>(pixel);
}

// Fragment of wgmma: of an m64 x N product, the thread with lane l of warp w (of 4) holds
// d[4 j + 2 h + e] = D[16 w + l / 4 + 8 h, 8 j + 2 (l % 4) + e] for j < N / 8, h < 2, e < 2.
// Below, `lane` is l % 4; h and `image` are known when the loops around the call are unrolled.
//
// Image number `image` of those that lie side by side in the columns, HW pixels each, as this lane
// has it. `pixel` is that of lane 0: known to the compiler, as `lane` is not.

// Lanes that have the image in this column: from one on, or up to one.
template <int HW>
INFODISENT_BOTH bool has(int pixel, int32_t lane) {
  bool inside = true;
  if (pixel < 0) inside = lane >= (1 - pixel) / 2;
  if (pixel + 6 >= HW) inside = inside && lane <= (HW + 1 - pixel) / 2 - 1;
  return inside;
}

// Until the last lines keys are those of one lane: lane 0, where images begin with it, else lane 3,
// whose pixels are the highest, so that no low bits are negative or too large. So they are
// constants, and what a column costs is one logical operation and two maxima. `keep`:
// ~mask_of(HW), which the compiler should not know.
template <int N, int HW>
INFODISENT_BOTH Keys keys_of_image(const float (&d)[N / 2], int h, int image, int32_t lane,
                                   uint32_t keep) {
  constexpr int32_t mask = mask_of(HW), base = HW % 8 == 0 ? 0 : 6;
  static_assert(base == 0 || HW + base <= mask + 1, "low bits must not be negative");
  const int begin = image * HW;
  Keys keys = {0, 0};
  INFODISENT_UNROLL
  for (int j = begin / 8; j < (begin + HW + 7) / 8; ++j) {
    INFODISENT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int pixel = 8 * j + e - begin;
      const uint32_t low = low_bits(pixel + base, mask);
      const uint32_t key = packed(bits_of(d[4 * j + 2 * h + e]), low, keep);
      add(keys, has<HW>(pixel, lane) ? key : 0);
    }
  }
  // Where there was nothing, what this makes of 0 is below every value still; with base 0 there is
  // something in every lane, and its low bits are no less than what is taken away.
  keys.largest += base - 2 * lane;
  keys.smallest += base - 2 * lane;
  return keys;
}

template <int N, int HW>
INFODISENT_BOTH Extremes extremes_of_image(const float (&d)[N / 2], int h, int image,
                                           int32_t lane) {
  const int begin = image * HW;
  Extremes extremes = kNothing;
  INFODISENT_UNROLL
  for (int j = begin / 8; j < (begin + HW + 7) / 8; ++j) {
    INFODISENT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int pixel = 8 * j + e - begin;
      add(extremes, has<HW>(pixel, lane) ? plain_bits(d[4 * j + 2 * h + e]) : 0, pixel);
    }
  }
  return moved(extremes, 2 * lane);
}

// The same where column n is pixel n + shift of the image, if it has such a pixel.
template <int N>
INFODISENT_BOTH Keys keys_of_run(const float (&d)[N / 2], int h, int32_t lane, int32_t shift,
                                 int32_t pixels, uint32_t mask) {
  Keys keys = {0, 0};
  INFODISENT_UNROLL
  for (int j = 0; j < N / 8; ++j) {
    INFODISENT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int32_t pixel = 8 * j + e + 2 * lane + shift;
      const uint32_t key = packed(bits_of(d[4 * j + 2 * h + e]), low_bits(pixel, mask), ~mask);
      add(keys, static_cast<uint32_t>(pixel) < static_cast<uint32_t>(pixels) ? key : 0);
    }
  }
  return keys;
}

template <int N>
INFODISENT_BOTH Extremes extremes_of_run(const float (&d)[N / 2], int h, int32_t lane,
                                         int32_t shift, int32_t pixels) {
  Extremes extremes = kNothing;
  INFODISENT_UNROLL
  for (int j = 0; j < N / 8; ++j) {
    INFODISENT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int32_t pixel = 8 * j + e + 2 * lane + shift;
      const bool inside = static_cast<uint32_t>(pixel) < static_cast<uint32_t>(pixels);
      add(extremes, inside ? plain_bits(d[4 * j + 2 * h + e]) : 0, 8 * j + e);
    }
  }
  return moved(extremes, 2 * lane + shift);
}

// Both sides as nonnegative integers; 0 is nothing. These are what tiles merge by integer maxima.
struct Sides {
  uint32_t pos, neg;
};
INFODISENT_BOTH Sides sides_of(int32_t largest, uint32_t smallest) {
  return {static_cast<uint32_t>(larger(largest, 0)),
          static_cast<uint32_t>(larger(static_cast<int32_t>(smallest ^ kSign), 0))};
}
// Value and pixel in 64 bits, for exact values.
INFODISENT_BOTH uint64_t wide_key(uint32_t bits, int32_t pixel) {
  if (bits == 0) return 0;
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(kNowhere - pixel);
}

// Of one channel of one image.
struct Pooled {
  float pos, neg;
  int32_t pos_index, neg_index;
};
INFODISENT_BOTH Pooled pooled(uint32_t pos, int32_t pos_at, uint32_t neg, int32_t neg_at) {
  // A NaN counts on both sides, whichever its sign put it on.
  const bool nan_pos = pos > kInfinity, nan_neg = neg > kInfinity;
  const int32_t at_nan = smaller(nan_pos ? pos_at : kNowhere, nan_neg ? neg_at : kNowhere);
  const bool nan = nan_pos || nan_neg;
  return {float_of(nan ? kNaN : pos), float_of(nan ? kNaN : neg),
          nan ? at_nan : (pos == 0 ? -1 : pos_at), nan ? at_nan : (neg == 0 ? -1 : neg_at)};
}
INFODISENT_BOTH Pooled pooled(Extremes extremes) {
  const Sides sides = sides_of(extremes.largest, extremes.smallest);
  return pooled(sides.pos, extremes.at_largest, sides.neg, extremes.at_smallest);
}
INFODISENT_BOTH Pooled unpacked(Sides sides, uint32_t mask) {
  return pooled(sides.pos & ~mask, static_cast<int32_t>(mask - (sides.pos & mask)),
                sides.neg & ~mask, static_cast<int32_t>(mask - (sides.neg & mask)));
}
INFODISENT_BOTH Pooled unpacked(uint64_t pos, uint64_t neg) {
  return pooled(static_cast<uint32_t>(pos >> 32), kNowhere - static_cast<int32_t>(pos & kNowhere),
                static_cast<uint32_t>(neg >> 32), kNowhere - static_cast<int32_t>(neg & kNowhere));
}

}  // namespace infodisent
