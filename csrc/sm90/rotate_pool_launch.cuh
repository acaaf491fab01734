// Launches one kernel of rotate_pool_kernel.cuh, chosen by tile and cluster. What is
// instantiated where: bfloat16 and float16 in rotate_pool.cu, float8 in
// rotate_pool_float8.cu.
#pragma once
#include "host.h"
#include "rotate_pool_kernel.cuh"

namespace infodisent {
namespace sm90 {

template <int KIND, bool EXACT, int CLUSTER, typename T>
Status launch(const Arguments& arguments, int device, int processors, cudaStream_t stream) {
  using K = Kernel<KIND, EXACT, CLUSTER, T>;
  // a cluster of parts has one tile, whether or not there are processors for all of them at a time
  if (K::PARTS > 1) processors = arguments.units * K::PARTS;
  return launch_persistent<rotate_pool_kernel<KIND, EXACT, CLUSTER, T>, K::BLOCKS>(
      arguments, arguments.units, kThreads, K::SHARED, device, processors, stream);
}

using Launcher = Status (*)(const Arguments&, int, int, cudaStream_t);

template <int KIND, bool EXACT, typename T>
Launcher of_cluster(int cluster) {
  if constexpr (kTiles[KIND].parts > 1)
    return cluster == 1 ? launch<KIND, EXACT, 1, T> : nullptr;
  else
    return cluster == 1 ? launch<KIND, EXACT, 1, T> : launch<KIND, EXACT, 2, T>;
}
template <bool EXACT, typename T>
Launcher of_tile(int tile, int cluster) {
  static_assert(kTileKinds == 12, "one line each below");
  switch (tile) {
    case 0:
      return of_cluster<0, EXACT, T>(cluster);
    case 1:
      return of_cluster<1, EXACT, T>(cluster);
    case 2:
      return of_cluster<2, EXACT, T>(cluster);
    case 3:
      return of_cluster<3, EXACT, T>(cluster);
    case 4:
      return of_cluster<4, EXACT, T>(cluster);
    case 5:
      return of_cluster<5, EXACT, T>(cluster);
    case 6:
      return of_cluster<6, EXACT, T>(cluster);
    case 7:
      return of_cluster<7, EXACT, T>(cluster);
    case 8:
      return of_cluster<8, EXACT, T>(cluster);
    case 9:
      return of_cluster<9, EXACT, T>(cluster);
    case 10:
      return of_cluster<10, EXACT, T>(cluster);
    default:
      return of_cluster<11, EXACT, T>(cluster);
  }
}

// Of rotate_pool_float8.cu, packed keys only.
Launcher float8_launcher(int tile, int cluster);

}  // namespace sm90
}  // namespace infodisent
