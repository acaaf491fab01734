#include "rotate_pool.h"

#include <stdexcept>
#include <type_traits>

#include "product_pool.h"

namespace infodisent {
namespace {

// Both extremes of every channel, which start at 0.
struct Extremes {
  static constexpr float kEmpty = 0.0f;
  template <typename E>
  using Task = TileTask<E>;
  static constexpr bool counts(int64_t, int64_t) { return true; }
  template <typename E>
  void place(TileTask<E>&, int, int64_t, int64_t) const {}
  template <typename E>
  void multiply(const TileKernel<E>& kernel, const TileTask<E>& task, bool packed, const E* panel,
                int64_t depth, int64_t block) const {
    kernel.tile(task, packed, panel, depth, block);
  }
  static constexpr int sides() { return 2; }
};

}  // namespace

template <typename T>
void rotate_pool(const Map<T>& x, const float* u, float* pos, float* neg, int32_t* pos_index,
                 int32_t* neg_index, int threads, int isa) {
  const TileKernel<float>* kernel = float_tile(static_cast<Isa>(isa));
  if (kernel == nullptr) throw std::invalid_argument("rotate_pool: no such instructions here");
  const bool direct = std::is_same<T, float>::value && x.channel_stride == 1;
  const PoolState out{pos, neg, pos_index, neg_index};
  ProductPool<T, float, Extremes>(x, u, x.channels, out, *kernel, direct, Extremes()).run(threads);
}

const char* tiles() {
  const TileKernel<float>* kernel = float_tile(Isa::kAuto);
  return kernel == nullptr ? "" : kernel->name;
}

bool has_pairs() { return pair_tile() != nullptr; }

void rotate_pool_pairs(const Map<BFloat16>& x, const BFloat16* u, float* pos, float* neg,
                       int32_t* pos_index, int32_t* neg_index, int threads) {
  const TileKernel<Pair>* kernel = pair_tile();
  if (kernel == nullptr) throw std::invalid_argument("rotate_pool: no AVX512-BF16 here");
  if (x.channels % 2) throw std::invalid_argument("rotate_pool: an odd number of channels");
  const bool even = (reinterpret_cast<std::uintptr_t>(x.data) & 3) == 0 &&
                    x.image_stride % 2 == 0 && x.pixel_stride % 2 == 0;
  const PoolState out{pos, neg, pos_index, neg_index};
  ProductPool<BFloat16, Pair, Extremes>(x, reinterpret_cast<const Pair*>(u), x.channels, out,
                                        *kernel, x.channel_stride == 1 && even, Extremes())
      .run(threads);
}

template void rotate_pool<float>(const Map<float>&, const float*, float*, float*, int32_t*,
                                 int32_t*, int, int);
template void rotate_pool<BFloat16>(const Map<BFloat16>&, const float*, float*, float*, int32_t*,
                                    int32_t*, int, int);
template void rotate_pool<Float16>(const Map<Float16>&, const float*, float*, float*, int32_t*,
                                   int32_t*, int, int);

}  // namespace infodisent
