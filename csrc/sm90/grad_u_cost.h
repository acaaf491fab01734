// Into how many parts of the batch dU is summed, and whether blocks go in pairs: the cheapest by a
// model of the clocks. Plain arithmetic. MODELLED, not measured on a GPU; see tile_cost.h.
#pragma once
#include <cstdint>

#include "grad_u_schedule.h"
#include "tile_cost.h"

namespace infodisent {
namespace backward {

constexpr int kMostSplits = 32;
constexpr double kPiece = 0.25;        // of a product of 16 rows: what making a piece takes besides
constexpr double kStore = 2000;        // clocks of the stores of a tile, which nothing hides
constexpr double kMemoryBytes = 1700;  // of the parts, a clock: they are written and read again

// Clocks of a piece of K for the 128 channels of a tile.
inline double piece_clocks(const Piece& piece, int cluster, int64_t blocks) {
  const double rows = 16 * piece.parts, bytes = slot_bytes(piece.parts);
  const double products = rows * kTileChannels * kTileColumns / 2048 * (1 + kPiece / piece.parts);
  const double port = 3 * bytes / cost::kPortBytes;  // brought once, read by two warpgroups
  const double fill = larger(bytes / cost::kFillBytes, blocks * bytes / cluster / cost::kL2Bytes);
  return larger(larger(products, port), fill);
}

struct Cost {
  int64_t blocks;  // that run at a time
  int64_t waves;   // tiles that a block computes
  double clocks;
};
inline Cost cost_of(int32_t images, int32_t pixels, int32_t channels, int32_t pitch, int cluster,
                    int splits, int processors) {
  const Grid grid = grid_of(images, channels, splits, cluster);
  const Cut cut = choose_cut(pixels, pitch);
  const Piece& piece = kPieces[cut.kind];
  const int32_t clusters = smaller(grid.units, larger(1, processors / cluster));
  Cost cost = {clusters * cluster, (grid.units + clusters - 1) / clusters, 0.0};
  const double pieces = steps_of(grid.images, pixels, cut.pitch, piece.parts);
  const double tile = pieces * piece_clocks(piece, cluster, cost.blocks) + kStore;
  cost.clocks = cost::kStart + cost.waves * tile;
  if (grid.splits > 1)
    cost.clocks += cost::kLaunch + 8.0 * grid.splits * channels * channels / kMemoryBytes;
  return cost;
}

struct Plan {
  int cluster, splits;
};
// Pairs where they cost nothing: they read half as much.
inline Plan choose(int32_t images, int32_t pixels, int32_t channels, int32_t pitch,
                   int processors) {
  Plan best = {1, 1};
  const auto clocks = [&](const Plan& plan) {
    return cost_of(images, pixels, channels, pitch, plan.cluster, plan.splits, processors).clocks;
  };
  for (int cluster = 1; cluster <= (processors > 1 ? 2 : 1); ++cluster)
    for (int splits = 1; splits <= smaller(images, kMostSplits); ++splits) {
      const Plan plan = {cluster, grid_of(images, channels, splits, cluster).splits};
      const double less = clocks(best) - clocks(plan);
      if (less > 0 || (less == 0 && plan.splits == best.splits)) best = plan;
    }
  return best;
}

}  // namespace backward
}  // namespace infodisent
