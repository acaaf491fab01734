// The transposition of channels_last.h: at least 16 bytes a thread in both directions, through
// shared memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "channels_last.h"
#include "host.h"

namespace infodisent {
namespace sm90 {
namespace {

constexpr int kRelayThreads = 256;
constexpr int kRelayBytes = 24 * 1024;  // of shared memory: 8 blocks and more run at a time
constexpr int kRowPixels = 128;         // of a tile that does not have whole channels
constexpr int kSixteen = 16;            // bytes that one access moves

// One tile: some channels, and all pixels of them or kRowPixels. `whole`: all of it is brought as
// one run, with what lies between the channels (prefix tokens, say): 49 pixels of 2 bytes begin at
// no multiple of 4, but 16-byte accesses do not care where in a run they are. Else one run a
// channel.
struct Relay {
  int32_t channels, pixels;
  int32_t tile_channels, tile_pixels;
  bool whole;
  int32_t across, along;  // tiles of channels, of pixels
  int64_t image_stride, channel_stride;
};

template <typename T>
struct Vector {
  static constexpr int SIZE = kSixteen / static_cast<int>(sizeof(T));
  __align__(16) T v[SIZE];
};

// Elements by which an address lies above a multiple of 16 bytes: a run lies as far above one in
// shared memory, so that aligned words stay aligned.
template <typename T>
__device__ __forceinline__ int shift_of(const T* from) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(from) % kSixteen / sizeof(T));
}
// Word number `word` of a run of `count` elements; at its ends only what belongs to it is read.
template <typename T>
__device__ __forceinline__ void bring(const T* from, int count, T* to, int word) {
  constexpr int SIZE = Vector<T>::SIZE;
  const int shift = shift_of(from), first = word * SIZE - shift;
  if (first >= 0 && first + SIZE <= count) {
    *reinterpret_cast<uint4*>(to + word * SIZE) = *reinterpret_cast<const uint4*>(from + first);
  } else {
#pragma unroll
    for (int i = 0; i < SIZE; ++i)
      if (first + i >= 0 && first + i < count) to[word * SIZE + i] = from[first + i];
  }
}

template <typename T>
__global__ void __launch_bounds__(kRelayThreads) channels_last_kernel(const T* x,  // [n, C, P]
                                                                      T* out,      // [n, P, C]
                                                                      const Relay r) {
  constexpr int SIZE = Vector<T>::SIZE;
  __shared__ __align__(16) T tile[kRelayBytes / sizeof(T)];
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t number = static_cast<int32_t>(blockIdx.x) % (r.across * r.along);
  const int64_t image = static_cast<int32_t>(blockIdx.x) / (r.across * r.along);
  const int32_t channel = number / r.along * r.tile_channels;
  const int32_t pixel = number % r.along * r.tile_pixels;
  const int channels = smaller(r.tile_channels, r.channels - channel);
  const int pixels = smaller(r.tile_pixels, r.pixels - pixel);
  const T* const from = x + image * r.image_stride + channel * r.channel_stride + pixel;

  const int row = r.tile_pixels + SIZE;  // elements of a run of one channel: with its shift
  if (r.whole) {
    const int count = static_cast<int>((channels - 1) * r.channel_stride) + pixels;
    const int words = (count + shift_of(from) + SIZE - 1) / SIZE;
    for (int word = thread; word < words; word += kRelayThreads) bring(from, count, tile, word);
  } else {
    const int words = row / SIZE;
    for (int i = thread; i < channels * words; i += kRelayThreads) {
      const int c = i / words;
      bring(from + c * r.channel_stride, pixels, tile + c * row, i - c * words);
    }
  }
  __syncthreads();

  // A warp: two words of 16 bytes side by side, which are one sector of memory, for 16 pixels. Its
  // reads of shared memory follow each other along the pixels.
  const int lane = thread % 32, halves = lane / 16;
  const int pairs = (channels + 2 * SIZE - 1) / (2 * SIZE), groups = (pixels + 15) / 16;
  for (int i = thread / 32; i < pairs * groups; i += kRelayThreads / 32) {
    const int c = (2 * (i % pairs) + halves) * SIZE, p = i / pairs * 16 + lane % 16;
    if (c >= channels || p >= pixels) continue;
    Vector<T> word;
#pragma unroll
    for (int k = 0; k < SIZE; ++k) {
      const int64_t begin = (c + k) * r.channel_stride;
      const int at = r.whole ? shift_of(from) + static_cast<int>(begin)
                             : (c + k) * row + shift_of(from + begin);
      word.v[k] = tile[at + p];
    }
    T* const to = out + (image * r.pixels + pixel + p) * r.channels + channel + c;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(word.v);
  }
}

// Tiles for elements of `size` bytes: whole channels, as many as fit, in steps of a sector of
// memory; or rows of pixels where not even one step fits, or where most of a run would be gaps.
Relay relay_of(const Planes& x, int size) {
  const int step = 2 * kSixteen / size;
  const int64_t room = kRelayBytes / size - kSixteen / size;
  Relay r = {};
  r.channels = static_cast<int32_t>(x.channels);
  r.pixels = static_cast<int32_t>(x.pixels);
  r.image_stride = x.image_stride;
  r.channel_stride = x.channel_stride;
  const bool close = x.channel_stride >= x.pixels && x.channel_stride <= 2 * x.pixels;
  r.whole = close && step * x.channel_stride <= room;
  if (r.whole) {
    r.tile_channels = static_cast<int32_t>(room / x.channel_stride) / step * step;
    r.tile_channels = std::min(r.tile_channels, 128);
    r.tile_pixels = r.pixels;
  } else {
    r.tile_pixels = kRowPixels;
    r.tile_channels = static_cast<int32_t>(room / (kRowPixels + kSixteen / size)) / step * step;
  }
  r.across = (r.channels + r.tile_channels - 1) / r.tile_channels;
  r.along = (r.pixels + r.tile_pixels - 1) / r.tile_pixels;
  return r;
}

template <typename T>
Status relay(const Planes& x, void* out, cudaStream_t stream) {
  const Relay r = relay_of(x, sizeof(T));
  const int64_t blocks = x.images * r.across * r.along;
  if (blocks >= int64_t{1} << 31) return refused("channels_last: too many tiles");
  return launch("channels_last", channels_last_kernel<T>, static_cast<unsigned>(blocks),
                kRelayThreads, stream, static_cast<const T*>(x.data), static_cast<T*>(out), r);
}

}  // namespace

Status channels_last(const Planes& x, int element_bytes, void* out, int device_index,
                     cudaStream_t stream) {
  if (x.images < 1 || x.pixels < 1 || x.channels < 1) return {cudaSuccess, ""};
  if (x.channels % 8 != 0 || !aligned(out))
    return refused("channels_last: channels must be a multiple of 8, the result begin at 16 bytes");
  if (x.images * x.pixels >= (int64_t{1} << 31) - 256 || x.channels >= 1 << 24)
    return refused("channels_last: 2^31 pixels or more");
  if (element_bytes != 2 && element_bytes != 4) return refused("channels_last: 2 or 4 bytes");
  const Device device(device_index);
  if (device.error() != cudaSuccess) return {device.error(), "the device"};
  return element_bytes == 2 ? relay<uint16_t>(x, out, stream) : relay<uint32_t>(x, out, stream);
}

}  // namespace sm90
}  // namespace infodisent
