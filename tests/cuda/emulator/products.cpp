// wgmma: groups of products, and one product of a warp as its lanes, descriptors and registers say.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "machine.h"

namespace infodisent {
namespace emulator {
namespace {

struct Tables {
  std::vector<float> bfloat16, float16, float8;
  Tables() : bfloat16(1 << 16), float16(1 << 16), float8(1 << 8) {
    for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
      bfloat16[bits] = float_of(bits << 16);
      __half_raw raw;
      raw.x = static_cast<uint16_t>(bits);
      float16[bits] = __half2float(__half(raw));
    }
    for (uint32_t bits = 0; bits < 1 << 8; ++bits) {
      __nv_fp8_e4m3 value;
      value.__x = static_cast<uint8_t>(bits);
      float8[bits] = static_cast<float>(value);
    }
  }
};
const Tables& tables() {
  static const Tables made;
  return made;
}

float element(const Block& block, uint32_t address, const Operands& o) {
  const uint32_t at = model::swizzled(address);
  if (at + o.element_bytes > block.memory.size()) fail("a product reads beyond shared memory");
  if (o.element_bytes == 1) return tables().float8[block.memory[at]];
  uint16_t bits;
  std::memcpy(&bits, &block.memory[at], 2);
  return number_of(bits, o.is_float16);
}

// Fields of a descriptor, in bytes.
struct Layout {
  uint32_t start, leading, stride;
  explicit Layout(uint64_t d)
      : start(static_cast<uint32_t>(d & 0x3fff) << 4),
        leading(static_cast<uint32_t>(d >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(d >> 32 & 0x3fff) << 4) {
    if (d >> 62 != 1 || (d >> 49 & 7) != 0) fail("fields of a descriptor");
  }
};

// PTX, "Asynchronous Warpgroup Level Matrix": K-major and N-major operands with the 128-byte
// swizzle, fragments of A and D.
void execute(const Warp& warp, const Product& product) {
  if (product.lanes != ~0u) fail("not all lanes of a warp issued a product");
  ++products_of_warps;
  const Block& block = machine.blocks[static_cast<size_t>(warp.block)];
  const Operands& o = product.of_lane[0];
  const int K = kPartBytes / o.element_bytes, N = o.columns, quarter = warp.index % 4;
  static std::vector<float> a, b;
  a.assign(16 * K, 0.0f);
  b.assign(static_cast<size_t>(N) * K, 0.0f);  // [N, K]
  const Layout right(o.b);
  if (o.registers != nullptr) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 8; ++i) {
        const uint32_t both = product.of_lane[lane].registers[i / 2];
        const int row = lane / 4 + 8 * (i / 2 % 2), k = 2 * (lane % 4) + i % 2 + 8 * (i / 4);
        a[row * K + k] =
            number_of(static_cast<uint16_t>(both >> (i % 2 ? 16 : 0) & 0xffff), o.is_float16);
      }
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < K; ++k)
        b[n * K + k] = element(
            block,
            right.start + n % 64 * 2 + n / 64 * right.leading + k % 8 * 128 + k / 8 * right.stride,
            o);
  } else {
    const Layout left(o.a);
    const auto k_major = [&](const Layout& layout, int row, int k) {
      return element(
          block, layout.start + row % 8 * 128 + row / 8 * layout.stride + k * o.element_bytes, o);
    };
    for (int k = 0; k < K; ++k) {
      for (int row = 0; row < 16; ++row) a[row * K + k] = k_major(left, 16 * quarter + row, k);
      for (int n = 0; n < N; ++n) b[n * K + k] = k_major(right, n, k);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* const d = product.of_lane[lane].d;
    for (int i = 0; i < N / 2; ++i) {
      const int row = lane / 4 + 8 * (i / 2 % 2), n = 2 * (lane % 4) + i % 2 + 8 * (i / 4);
      float sum = o.accumulate ? d[i] : 0.0f;
      for (int k = 0; k < K; ++k) sum += a[row * K + k] * b[n * K + k];
      d[i] = sum != sum ? float_of(0x7fffffffu) : sum;  // the NaN that tensor cores write
    }
  }
}

Group& own_group() {
  Warp& warp = *self->warp;
  while (warp.first_group + static_cast<long>(warp.groups.size()) <= self->group)
    warp.groups.emplace_back();
  return warp.groups[static_cast<size_t>(self->group - warp.first_group)];
}

}  // namespace

float number_of(uint16_t bits, bool is_float16) {
  return (is_float16 ? tables().float16 : tables().bfloat16)[bits];
}

void product(const Operands& o) {
  if (self->lane == 0 && beside_a_pool()) ++products_beside;
  std::vector<Product>& products = own_group().products;
  if (products.size() <= self->product) products.emplace_back();
  Product& own = products[self->product++];
  if (own.lanes != 0) {
    const Operands& first = own.of_lane[__builtin_ctz(own.lanes)];
    if (first.a != o.a || first.b != o.b || first.accumulate != o.accumulate ||
        first.columns != o.columns)
      fail("lanes disagree about a product");
  }
  own.of_lane[self->lane] = o;
  own.lanes |= 1u << self->lane;
}
void commit() {
  ++own_group().committed;
  ++self->group;
  self->product = 0;
}
void wait_products(int pending) {
  Warp& warp = *self->warp;
  const long before = warp.waits;
  if (++warp.waiting == 32) {
    const int keep = below(2) ? pending : 0;  // they may be done sooner
    while (warp.first_group < self->group - keep) {
      if (warp.groups.front().committed != 32) fail("a group that not all lanes committed");
      for (const Product& each : warp.groups.front().products) execute(warp, each);
      warp.groups.pop_front();
      ++warp.first_group;
    }
    warp.waiting = 0;
    ++warp.waits;
  }
  block_until([&] { return warp.waits != before; });
  self->pooling = pending == 0;
}

}  // namespace emulator
}  // namespace infodisent
