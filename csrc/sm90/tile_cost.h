// Which tile and cluster rotate_pool takes: the cheapest by a model of the clocks. Plain
// arithmetic.
//
// MODELLED, not measured on a GPU. From the manuals: an m64nNk16 takes N / 2 clocks (2048
// multiply-adds a clock), shared memory moves 128 bytes a clock. Estimates: everything else.
#pragma once
#include <cstdint>

#include "tile_schedule.h"

namespace infodisent {
namespace cost {

constexpr double kPortBytes = 128;  // of shared memory, a clock: reads of products, and copies
constexpr double kFillBytes = 64;   // that a processor gets from L2, a clock
constexpr double kL2Bytes =
    5120;                        // that L2 gives to all of them, a clock: A100's, and no less here
constexpr double kStart = 2000;  // clocks until the first product: barriers, the first slot
constexpr double kExchange = 1000;  // clocks of what the parts of an image send each other
constexpr double kLaunch = 1500;    // clocks of one more kernel or fill on the stream

struct Problem {
  int32_t images, pixels, channels, pitch;
  int32_t steps;  // slots along K: channels / block_k, three times as many for parts of float32
};

// Clocks of a slot: whatever is slowest. `blocks` run at a time.
inline double slot_clocks(const TileShape& tile, int cluster, int64_t blocks) {
  const double products = tile.channels / 64.0 * tile.columns / 2 * (kRowBytes / kPartBytes);
  const double slot = slot_bytes(tile.channels, tile.columns);
  // each product of 64 rows reads all columns anew
  const double read = (tile.channels + tile.channels / 64.0 * tile.columns) * kRowBytes;
  const double port = (slot + read) / kPortBytes;
  const double fetched =
      (tile.channels / tile.parts + slot_rows(tile.columns) / cluster) * kRowBytes;
  const double fill = larger(slot / kFillBytes, blocks * fetched / kL2Bytes);
  return larger(larger(products, port), fill);
}
// Clocks of the pool of a tile: instructions of a warp, of which each quarter of the processor has
// one. Across borders every image of the tile is a sweep over all columns.
inline double pool_clocks(const TileShape& tile, int32_t pitch) {
  const double values = tile.channels / 64.0 * tile.columns / 2;
  if (tile.parts > 1) return 6 * values + 150;
  if (tile.images > 0) return 4 * values + 100.0 * tile.images * (tile.channels / 64.0);
  const double sweeps = 1 + (pitch > 0 ? static_cast<double>(tile.columns) / pitch : 0);
  return sweeps * (6 * values + 150);
}

struct Cost {
  int64_t tiles;   // of all channels and pixels; those of a pair's missing half count
  int64_t blocks;  // that run at a time
  int64_t waves;   // tiles that a block computes
  double clocks;
};
inline Cost cost_of(const Problem& p, int kind, int cluster, int processors) {
  const TileShape& tile = kTiles[kind];
  const int64_t units = static_cast<int64_t>(layout_of(kind, p.images, p.pixels, p.pitch).tiles) *
                        channel_groups(p.channels, cluster, tile.channels);
  // Clusters of 4 lie within groups of 16 or 18 processors.
  const int together = tile.parts > 1 ? processors / 16 * 16 / tile.parts : processors / cluster;
  const int64_t clusters = smaller<int64_t>(units, larger(1, together));
  const int blocks = cluster * tile.parts;  // of a cluster
  Cost cost = {units * blocks, clusters * blocks, (units + clusters - 1) / clusters, 0.0};
  const double product = p.steps * slot_clocks(tile, cluster, cost.blocks);
  const double pool = pool_clocks(tile, p.pitch);
  // Two warpgroups take turns, so that a pool is hidden by the products of the next tile, unless
  // it takes longer than those.
  const double turn = larger(product, (product + pool) / 2);
  cost.clocks = kStart + (cost.waves - 1) * turn + product + pool;
  if (tile.parts > 1) cost.clocks = cost.waves * (kStart + product + pool + kExchange);
  if (is_flat(kind)) cost.clocks += 2 * kLaunch;  // the keys are cleared and unpacked
  return cost;
}

// Pairs of blocks load halves of the same rows, in whole groups of 8.
inline bool has_halves(int kind, const Problem& p) {
  return kTiles[kind].parts == 1 && (p.pitch == p.pixels || kTiles[kind].images <= 1);
}
inline int choose_cluster(const Problem& p, int kind, int processors) {
  const bool pairs =
      processors > 1 && has_halves(kind, p) &&
      cost_of(p, kind, 2, processors).clocks < cost_of(p, kind, 1, processors).clocks;
  return pairs ? 2 : 1;
}
// Flat tiles, which need scratch and two more launches, only where they are 2 % cheaper: the model
// is not exact enough to tell less.
inline int choose_tile(const Problem& p, int processors) {
  const auto clocks = [&](int kind) {
    return cost_of(p, kind, choose_cluster(p, kind, processors), processors).clocks *
           (is_flat(kind) ? 1.02 : 1.0);
  };
  int best = kFlat;
  for (int kind = 0; kind < kTileKinds; ++kind)
    if (serves(kind, p.pixels) && clocks(kind) < clocks(best)) best = kind;
  return best;
}

}  // namespace cost
}  // namespace infodisent
