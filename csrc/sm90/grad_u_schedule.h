// What the kernel of rotate_pool_backward_kernel.cuh multiplies, where it lies and who does it.
// Plain arithmetic, so that tests/cuda/rotate_pool_backward_model.cpp runs it on the CPU.
//
// dU = sum_b dY_b X_b is one product whose K runs over the pixels of all images. dY_b [C, P] has at
// most two entries a row, gradients at the winners; it exists only as registers of the threads that
// multiply by it.
//
// K is cut into pieces of 32 to 112 rows. Where images follow each other pieces go on across their
// borders ("through"): 49 pixels then take 49 rows of K and not 64.
#pragma once
#include <cstdint>

#include "packed_key.h"
#include "tile_schedule.h"

namespace infodisent {
namespace backward {

constexpr int kTileColumns = 256;  // of dU; the rows of a tile are kTileChannels
constexpr int kBoxColumns = 64;    // 128 bytes, the span of the swizzle
constexpr int kBoxes = kTileColumns / kBoxColumns;

// A slot holds one piece of K: `parts` times 16 rows of x, zeros beyond its end. Through: pieces
// may begin anywhere in an image; else each image begins with one. Longer ones are not there
// through: with winners of two images they spill.
struct Piece {
  int parts;
  bool through;
};
constexpr Piece kPieces[] = {{2, false}, {3, false}, {4, false}, {7, false}, {2, true}, {3, true}};
constexpr int kPieceKinds = sizeof(kPieces) / sizeof(kPieces[0]);
// What distances to a winner, 16 for each row, are counted modulo is 2^28 rows: of two images.
constexpr int32_t kMostPixels = 1 << 26;

INFODISENT_BOTH constexpr int box_bytes(int piece) { return piece * 16 * kBoxColumns * 2; }
constexpr int slot_bytes(int piece) { return kBoxes * box_bytes(piece); }
// Slots, each with two barriers; and room to begin at a multiple of 1024.
constexpr int shared_bytes(int piece, int stages) {
  return stages * (slot_bytes(piece) + 16) + 1024;
}
constexpr int stages_of(int piece) {
  int stages = 2;
  while (stages < 8 && shared_bytes(piece, stages + 1) <= kSharedLimit) ++stages;
  return stages;
}

// How K is cut.
struct Cut {
  int kind;       // of kPieces
  int32_t pitch;  // rows of K from one image to the next
};
// The one with the least products; a piece costs about a quarter of one besides (an estimate, not
// measured). Through: only where a piece has rows of two images at most. `pitch`: of the map, see
// pitch_of in tile_schedule.h; rows between images are multiplied by zeros then.
inline Cut choose_cut(int32_t pixels, int32_t pitch) {
  Cut best = {};
  double least = 0.0;
  for (int kind = 0; kind < kPieceKinds; ++kind) {
    const Piece& piece = kPieces[kind];
    const int rows = 16 * piece.parts;
    if (piece.through && (pitch == 0 || pitch >= kMostPixels || rows > pitch + 1)) continue;
    const Cut cut = {kind, piece.through ? pitch : (pixels + rows - 1) / rows * rows};
    const double cost = static_cast<double>(cut.pitch) / rows * (4 * piece.parts + 1);
    if (kind != 0 && cost >= least) continue;
    best = cut;
    least = cost;
  }
  return best;
}
// Pieces of so many images.
INFODISENT_BOTH int32_t steps_of(int32_t images, int32_t pixels, int32_t pitch, int piece) {
  return ((images - 1) * pitch + pixels + 16 * piece - 1) / (16 * piece);
}

// --- work ---

struct Grid {
  int32_t groups;  // tiles of channels, in groups of as many as a cluster has blocks
  int32_t across;  // tiles of columns
  int32_t splits;  // parts of the batch, each with a sum of its own
  int32_t images;  // of a part; the last one may have less
  int32_t units;   // groups * across * splits
};
inline Grid grid_of(int32_t images, int32_t channels, int splits, int cluster) {
  Grid grid = {};
  grid.groups = channel_groups(channels, cluster);
  grid.across = (channels + kTileColumns - 1) / kTileColumns;
  grid.images = (images + splits - 1) / splits;
  grid.splits = (images + grid.images - 1) / grid.images;  // none is empty
  grid.units = grid.groups * grid.across * grid.splits;
  return grid;
}
struct Unit {
  int32_t m, n;         // tile of channels, tile of columns
  int32_t split;        // part of the batch
  int32_t first, last;  // its images, without the last
};
// Unit of work `unit` of block `rank` of a cluster. The tiles of one part first: they read the same
// images.
INFODISENT_BOTH Unit unit_of(const Grid& grid, int32_t unit, int32_t images, int cluster,
                             int rank) {
  const int32_t tiles = grid.groups * grid.across;
  const int32_t split = unit / tiles, tile = unit - split * tiles;
  const int32_t n = tile / grid.groups, group = tile - n * grid.groups;
  const int32_t first = split * grid.images;
  return {group * cluster + rank, n, split, first, smaller(first + grid.images, images)};
}

// --- the left operand: dY, in registers ---

// The scale of a channel: brings `most`, the largest magnitude of its gradients, into [2^13, 2^14).
// It and what undoes it are normal numbers: 13 - 127 is the least exponent.
INFODISENT_BOTH float scale_of(float most) {
  const int32_t exponent = static_cast<int32_t>(bits_of(most) >> 23) - 127;
  return float_of(static_cast<uint32_t>(smaller(13 - exponent, 126) + 127) << 23);
}

// Both winners of one channel of one image, as one lane needs them. The lane holds rows
// 2 (lane % 4) + {0, 1} and, in another register, those + 8, of every 16. The first of two rows is
// the low half of a register.
struct Winners {
  uint32_t pos_bits, neg_bits;  // gradients, 16 bits; 0 where there is none
  uint32_t pos_at, neg_at;      // 16 times (row - 2 (lane % 4)), as the shifts below want it
};
// Where both are the same pixel it counts once, with both gradients.
INFODISENT_BOTH void merge(float& g_pos, float g_neg, int32_t pos, int32_t& neg) {
  if (pos != neg) return;
  g_pos += g_neg;
  neg = -1;
}
// `first`: the row of the piece at which the image begins.
INFODISENT_BOTH Winners winners_of(uint32_t pos_bits, uint32_t neg_bits, int32_t pos, int32_t neg,
                                   int32_t first, int lane) {
  const int32_t from = first - 2 * (lane % 4);
  return {pos < 0 ? 0 : pos_bits, neg < 0 ? 0 : neg_bits, static_cast<uint32_t>(pos + from) * 16u,
          static_cast<uint32_t>(neg + from) * 16u};
}
// The same for the piece that begins `rows` later.
INFODISENT_BOTH void move_on(Winners& w, int32_t rows) {
  w.pos_at -= static_cast<uint32_t>(rows) * 16u;
  w.neg_at -= static_cast<uint32_t>(rows) * 16u;
}
// 0 from 32 on, as the instruction does it and C++ does not.
INFODISENT_BOTH uint32_t shifted(uint32_t bits, uint32_t by) {
#if defined(__CUDA_ARCH__)
  uint32_t result;
  asm("shl.b32 %0, %1, %2;" : "=r"(result) : "r"(bits), "r"(by));
  return result;
#else
  return by < 32 ? bits << by : 0;
#endif
}
// The register for rows `row` + 2 (lane % 4) + {0, 1} of a piece, `row` a multiple of 8. A winner
// that is k rows away is shifted by 16 k bits: in for k = 0 and 1, out for all others, since
// negative distances are large ones. Both winners never meet in one half: where they are the same
// pixel, `merge` has made one of them. Nor do those of two images.
INFODISENT_BOTH uint32_t fragment(const Winners& w, int32_t row) {
  const uint32_t at = static_cast<uint32_t>(row) * 16u;
  return shifted(w.pos_bits, w.pos_at - at) | shifted(w.neg_bits, w.neg_at - at);
}
// Register i of the four that a lane passes for 16 pixels: (channel + 8 (i % 2), rows + 8 (i / 2)).
INFODISENT_BOTH constexpr int row_of(int i) { return i % 2 * 8; }
INFODISENT_BOTH constexpr int pixel_of(int i) { return i / 2 * 8; }
// The first row of a piece that register i of it holds, besides those of its lane.
INFODISENT_BOTH constexpr int row_of_register(int i) { return i / 4 * 16 + pixel_of(i % 4); }

// --- the right operand: x, in shared memory ---

// A box is [16 * piece pixels, 64 columns], 128 bytes a pixel, written by TMA with the 128-byte
// swizzle; a slot is kBoxes of them side by side. To the product, which sums over pixels, this is a
// matrix [K, N] with N contiguous: N-major, "transposed".
//
// Descriptor of such an operand (PTX, "Shared Memory Matrix Layout", N-major, 128-byte swizzle; in
// the notation of CuTe, in elements of 2 bytes, ((8, 8, n), (8, k)) : ((1, 8, LEADING),
// (64, STRIDE))): 64 elements along N are contiguous, 8 along K follow each other in rows of 128
// bytes, and these blocks of 1024 bytes, in which the pattern of the swizzle is complete, are
// repeated along N every "leading byte offset" and along K every "stride byte offset". So here
// leading = one box and stride = 1024. The other fields are as in tile_schedule.h.
INFODISENT_BOTH uint64_t descriptor_of(uint32_t address, int piece) {
  const uint32_t leading = static_cast<uint32_t>(box_bytes(piece)) >> 4;
  const uint32_t low = (address & 0x3ffff) >> 4 | leading << 16;
  const uint32_t high = (1024u >> 4) | 1u << 30;
  return static_cast<uint64_t>(high) << 32 | low;
}
// What to add for the 16 pixels number k: two blocks of 1024 bytes on.
INFODISENT_BOTH constexpr uint32_t descriptor_step(int k) {
  return static_cast<uint32_t>(k) * 2048 / 16;
}

}  // namespace backward
}  // namespace infodisent
