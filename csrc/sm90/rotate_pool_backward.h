// The gradient of U of rotate_pool on Hopper GPUs (compute capability 9.0), for half maps. Pointers
// are device memory.
#pragma once
#include "rotate_pool.h"

namespace infodisent {
namespace sm90 {

struct GradOptions {
  int device;
  int cluster;    // 1; or 2: pairs of blocks share the columns of x that they multiply with
  int splits;     // parts of the batch that are summed apart
  bool out_half;  // dU in the dtype of x, else float32
};

// dU[c, k] = sum_b grad_pos[b, c] x[b, pos_index[b, c], k] + grad_neg[b, c] x[b, neg_index[b, c],
// k], added up in float32 in an order that depends on the sizes and `splits` alone. Gradients are
// rounded to the dtype of x, for float16 after a power of two for each channel that keeps them in
// its range; sums that are not finite are formed again from the winners alone, in float32. What
// stands where there is no winner does not matter.
// Launches on `stream` and does not wait.
Status grad_u(const Rows& x, Dtype dtype,  // kBFloat16 or kFloat16
              const float* grad_pos,       // [n, C]
              const float* grad_neg,       // [n, C]
              const int32_t* pos_index,    // [n, C], -1: no winner
              const int32_t* neg_index,    // [n, C]
              void* out,                   // [C, C]
              float* parts,                // [splits, C, C]: scratch; null for one split
              float* scales,               // [C]: scratch for float16, else null
              const GradOptions& options, cudaStream_t stream);

}  // namespace sm90
}  // namespace infodisent
