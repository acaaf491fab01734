// Which block of rotate_pool_kernel.cuh computes which tile, when, and through which slot of its
// pipeline. Plain arithmetic, so that tests/cuda/rotate_pool_model.cpp checks it on the CPU.
#pragma once
#include <cstdint>

#include "packed_key.h"

namespace infodisent {

constexpr int kTileChannels = 128;  // rows of most tiles: two products of 64
constexpr int kRowBytes = 128;      // of a channel or pixel in a slot, the span of the swizzle
// Channels of x in a slot: 64 of 2 bytes, 128 of 1 (float8).
constexpr int block_k(int element_bytes) { return kRowBytes / element_bytes; }
constexpr int kGroups = 2;  // warpgroups that take turns, each with a whole tile

// A tile: `channels` rows, each product of 64 of them, by `columns`. images > 0: so many whole
// images of `pixels` side by side, and then columns of nothing up to a multiple of 8. images == 0:
// any number of pixels, across the borders of images ("flat").
//
// There is none of 256 pixels: 256 columns of 128 channels are 256 registers of sums, and with 64
// channels a slot brings as many bytes for half of the products. "flat" wastes no column on them.
//
// Those of 64 channels are for few images: more tiles, each with less to load. tile_cost.h says
// when that is worth the bytes of U, which then serve fewer columns. parts > 1: an image of at most
// `parts` times `columns` pixels is shared out to a cluster of as many blocks, each of which loads
// a part of U for all of them. (Parts of K would be fewer bytes, but sums in another order, and
// then bits that depend on how many images there are.)
struct TileShape {
  const char* name;
  int channels, columns, images, pixels, stages;
  int parts = 1;
};
// As many slots as 227 KiB hold, or 8; see shared_bytes.
constexpr TileShape kTiles[] = {
    {"4x49", 128, 200, 4, 49, 5},       {"3x49", 128, 152, 3, 49, 6},
    {"1x196", 128, 200, 1, 196, 5},     {"1x197", 128, 200, 1, 197, 5},
    {"1x144", 128, 144, 1, 144, 6},     {"3x64", 128, 192, 3, 64, 5},
    {"flat", 128, 192, 0, 0, 5},        {"few 1x49", 64, 56, 1, 49, 8},
    {"few 2x49", 64, 104, 2, 49, 8},    {"few flat", 64, 32, 0, 0, 8},
    {"part of 64", 64, 16, 1, 0, 8, 4}, {"part of 224", 64, 56, 1, 0, 8, 4},
};
constexpr int kTileKinds = sizeof(kTiles) / sizeof(kTiles[0]);
constexpr int kFlat = 6;  // the one for whole values of float16
constexpr bool is_flat(int kind) { return kTiles[kind].images == 0; }
// Whether a tile can have images of so many pixels.
constexpr bool serves(int kind, int64_t pixels) {
  const TileShape& tile = kTiles[kind];
  if (tile.parts > 1) return pixels <= tile.parts * tile.columns;
  return is_flat(kind) || pixels == tile.pixels;
}
static_assert(is_flat(kFlat), "any number of pixels");

// Rows of x in a slot: columns, so that each of two blocks loads half of them in whole groups of 8
// rows, which is where the pattern of the swizzle begins anew.
constexpr int slot_rows(int columns) { return (columns + 15) / 16 * 16; }
constexpr int half_bytes(int columns) { return slot_rows(columns) / 2 * kRowBytes; }
constexpr int slot_bytes(int channels, int columns) {
  return (channels + slot_rows(columns)) * kRowBytes;
}
// Where the blocks of an image send what they have: to block w rows 16 w to 16 w + 15, of which it
// writes the results. A barrier, and 16 bytes a block and row.
constexpr int kPartRows = 16;
constexpr int kPartEntry = 16;
constexpr int exchange_bytes(const TileShape& tile) {
  return tile.parts > 1 ? 16 + tile.parts * kPartRows * kPartEntry : 0;
}
// Slots, their two barriers each, the two barriers of the turns, the exchange; and room to begin at
// a multiple of 1024.
constexpr int shared_bytes(const TileShape& tile) {
  return tile.stages * slot_bytes(tile.channels, tile.columns) + (2 * tile.stages + kGroups) * 8 +
         exchange_bytes(tile) + 1024;
}
constexpr int kSharedLimit = 227 * 1024;

constexpr int kPartBytes = 32;  // of K, in one wgmma

// Descriptor of an operand of wgmma whose rows are 128 bytes along K, written by TMA with the
// 128-byte swizzle, in whole groups of 8 rows that begin at multiples of 1024. Fields: bits 0-13
// address / 16; bits 16-29 leading byte offset / 16, which this layout does not use (1 by
// convention); bits 32-45 stride from one group of 8 rows to the next / 16 = 1024 / 16; bits 49-51
// base offset, 0 as groups begin at multiples of 1024; bits 62-63 = 1, the 128-byte swizzle.
INFODISENT_BOTH uint64_t descriptor_of(uint32_t address) {
  const uint32_t low = (address & 0x3ffff) >> 4 | 1u << 16;
  const uint32_t high = (1024u >> 4) | 1u << 30;
  return static_cast<uint64_t>(high) << 32 | low;
}
// What to add for the 64 rows number m and the part number k of K, which is what one wgmma takes:
// 16 elements of 2 bytes or 32 of 1. 64 rows are 8192 bytes, and a part is 32 bytes further in the
// row. The swizzle exchanges address bits 4-6 by bits 7-9 of the address that comes out, so the
// start simply moves on.
INFODISENT_BOTH constexpr uint32_t descriptor_step(int m, int k) {
  return static_cast<uint32_t>(m * 64 * kRowBytes + k * kPartBytes) / 16;
}

// Rows from one image to the next, each of pixel_stride: as many as pixels where images follow each
// other, more where there are others between them (class tokens, say), 0 where rows do not go on at
// that distance.
inline int32_t pitch_of(int64_t images, int64_t pixels, int64_t image_stride,
                        int64_t pixel_stride) {
  if (images == 1) return static_cast<int32_t>(pixels);
  const int64_t pitch = image_stride / pixel_stride;
  const bool whole = image_stride % pixel_stride == 0 && pitch >= pixels;
  return whole && images * pitch < (int64_t{1} << 31) - 256 ? static_cast<int32_t>(pitch) : 0;
}

// How tiles lie in the map: tile n begins at row (n % blocks) * row_step of image
// (n / blocks) * image_step of the tensor map.
struct Layout {
  int32_t tiles;  // along the pixels
  int32_t blocks, row_step, image_step;
  int32_t pitch;  // rows from one image to the next, where rows
  bool rows;      // the tensor map is one image of all rows, else B images of P rows
};
inline Layout layout_of(int kind, int32_t images, int32_t pixels, int32_t pitch) {
  const int columns = kTiles[kind].columns, side_by_side = kTiles[kind].images;
  Layout layout = {};
  layout.pitch = pitch;
  if (is_flat(kind)) {
    // rows between images are read and ignored, where that takes no more tiles than to begin anew
    // with every image
    const int32_t through = ((images - 1) * pitch + pixels + columns - 1) / columns;
    const int32_t apart = (pixels + columns - 1) / columns;
    layout.rows = pitch != 0 && through <= static_cast<int64_t>(apart) * images;
    layout.blocks = layout.rows ? through : apart;
    layout.tiles = layout.rows ? through : apart * images;
    layout.row_step = columns;
    layout.image_step = 1;
  } else {
    layout.tiles = (images + side_by_side - 1) / side_by_side;
    layout.rows = pitch == pixels && side_by_side > 1;
    layout.blocks = layout.rows ? layout.tiles : 1;
    layout.row_step = side_by_side * pixels;
    layout.image_step = side_by_side;
  }
  return layout;
}

// Tiles of channels, in groups of as many as a cluster has blocks: those share their pixels.
// `rows`: channels of a tile.
INFODISENT_BOTH int32_t channel_groups(int32_t channels, int cluster, int rows = kTileChannels) {
  const int32_t group = rows * cluster;
  return (channels + group - 1) / group;
}
struct Work {
  int32_t m, n;  // tile of channels, tile of pixels
};
// Unit of work `unit` of block `rank` of a cluster. Channels go fastest: clusters that run together
// read few pixels, and all of U, which is small, from L2.
INFODISENT_BOTH Work work_of(int32_t unit, int32_t groups, int cluster, int rank) {
  return {unit % groups * cluster + rank, unit / groups};
}
// Cluster c of `clusters` computes units c, c + clusters, ...; its warpgroups take them in turns.
INFODISENT_BOTH int32_t unit_of(int32_t turn, int32_t cluster_id, int32_t clusters) {
  return cluster_id + turn * clusters;
}

// A place in the ring of slots: use u of a slot completes phase u of its "full" barrier, and then
// of its "empty" one. A wait for parity u % 2 on "full" is for use u to have arrived; a wait for
// the other parity on "empty" is for use u - 1 to have been read, which is true at first for u = 0.
struct Slot {
  uint32_t stage, parity;
  INFODISENT_BOTH static Slot at(uint32_t step, uint32_t stages) {
    return {step % stages, step / stages % 2};
  }
  INFODISENT_BOTH void advance(uint32_t stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Images in a flat tile: the first of them, the pixel of it that is column 0 (beyond its
// last one, if a tile begins between two images), and how many.
struct Run {
  int32_t image, pixel, images;
};
INFODISENT_BOTH Run run_of(int32_t n, int32_t images, int columns, const Layout& layout) {
  if (!layout.rows) return {n / layout.blocks, n % layout.blocks * columns, 1};
  const int32_t column = n * columns;
  const int32_t first = column / layout.pitch, skip = column - first * layout.pitch;
  return {first, skip, smaller((skip + columns - 1) / layout.pitch + 1, images - first)};
}

// Tiles of a problem.
inline int64_t count_tiles(int kind, int32_t images, int32_t pixels, int32_t channels,
                           int32_t pitch) {
  return static_cast<int64_t>(layout_of(kind, images, pixels, pitch).tiles) *
         channel_groups(channels, 1, kTiles[kind].channels);
}

}  // namespace infodisent
