// Every function of csrc/cpu at awkward sizes, for AddressSanitizer and UndefinedBehaviorSanitizer.
// Buffers are exactly as long as they must be, so that a read or a write beyond one is reported.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "mx_pool.h"
#include "rotate_pool.h"
#include "rotate_pool_screen.h"
#include "rotation.h"
#include "similarity_pool.h"

namespace {

void require(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "wrong result: %s\n", what);
    std::exit(1);
  }
}

template <typename T>
std::vector<T> numbers(size_t count, unsigned seed) {
  std::vector<T> values(count);
  for (auto& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<T>(static_cast<double>(seed >> 8) / (1 << 23) - 1.0);
  }
  return values;
}

template <typename T>
void rotation_passes(int64_t n, int threads) {
  const size_t size = static_cast<size_t>(n * n);
  auto a = numbers<T>(size, 1), b = numbers<T>(size, 2);
  std::vector<T> x(size), y(size), z(size);
  const T* in[] = {a.data(), b.data(), nullptr};  // the third has coefficient 0: never read
  T* out[] = {x.data(), y.data(), z.data()};
  const double c[] = {1, 0.5, 0, 2, 0, 0, 0, -1, 0};
  const int parity[] = {0, 1, -1};
  infodisent::combine<T>(in, 3, out, 3, c, parity, n, {0, 1}, threads);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const size_t ij = static_cast<size_t>(i * n + j), ji = static_cast<size_t>(j * n + i);
      require(std::abs(x[ij] - (a[ij] + T(0.5) * b[ij])) < 1e-5, "combine, no parity");
      require(std::abs(y[ij] - (2 * a[ij] + 2 * a[ji])) < 1e-5, "combine, symmetric");
      require(std::abs(z[ij] - (b[ji] - b[ij])) < 1e-5, "combine, skew");
    }
  for (int number : {2, 0, 1}) {  // shares, each of which writes what is its own
    std::vector<T> before(z);
    if (number == 2) std::fill(z.begin(), z.end(), T(7)), before = z;
    infodisent::combine<T>(in, 3, out, 3, c, parity, n, {number, 3}, threads);
    for (size_t i = 0; i < size; ++i)
      require(before[i] == T(7) || before[i] == z[i], "combine, what another share has");
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const size_t ij = static_cast<size_t>(i * n + j), ji = static_cast<size_t>(j * n + i);
      require(std::abs(z[ij] - (b[ji] - b[ij])) < 1e-5, "combine, skew, by shares");
    }
  const T* self[] = {x.data()};
  T* same[] = {x.data()};
  const double one[] = {1};
  infodisent::combine<T>(self, 1, same, 1, one, parity + 2, n, {0, 1}, threads);  // in place
  infodisent::mirror<T>(x.data(), n, -1, threads);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      require(x[static_cast<size_t>(i * n + j)] == -x[static_cast<size_t>(j * n + i)], "mirror");
  double result[2];
  infodisent::norms<T>(x.data(), n, result, threads);
  require(result[0] >= 0 && result[1] >= 0, "norms");
  x[size - 1] = std::numeric_limits<T>::quiet_NaN();
  infodisent::norms<T>(x.data(), n, result, threads);
  require(std::isnan(result[0]), "norms of NaN");
}

using infodisent::BFloat16;
using infodisent::Float16;
using infodisent::Map;
using infodisent::Wide;
using infodisent::widen;

template <typename T>
T narrowed(double x) {
  return static_cast<T>(x);
}
template <>
BFloat16 narrowed<BFloat16>(double x) {
  const float value = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return {static_cast<uint16_t>(bits >> 16)};
}
template <>
Float16 narrowed<Float16>(double x) {  // what is normal; the rest becomes 0
  const float value = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int exponent = static_cast<int>(bits >> 23 & 255) - 127 + 15;
  const uint32_t sign = bits >> 16 & 0x8000u;
  if (exponent <= 0) return {static_cast<uint16_t>(sign)};
  return {
      static_cast<uint16_t>(sign | static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 1023))};
}

// A map in one of the layouts, in memory that ends where its last number does.
template <typename T>
struct Owned {
  std::vector<T> memory;
  Map<T> map;
};
template <typename T>
Owned<T> owned(int64_t n, int64_t p, int64_t c, int layout) {
  const int64_t prefix = layout == 2 ? 1 : 0, image = (p + prefix) * c;
  Owned<T> x;
  for (double v : numbers<double>(static_cast<size_t>(n * image), 7))
    x.memory.push_back(narrowed<T>(v));
  const T* data = x.memory.data() + prefix * c;
  // 0: channels last; 1: pixels last; 2: tokens, the first of which is not a pixel
  x.map = layout == 1 ? Map<T>{data, n, p, c, image, 1, p} : Map<T>{data, n, p, c, image, c, 1};
  return x;
}
template <typename T>
double at(const Map<T>& x, int64_t b, int64_t p, int64_t c) {
  return widen(x.data[b * x.image_stride + p * x.pixel_stride + c * x.channel_stride]);
}

template <typename A>
struct Pool {
  Pool(int64_t n, int64_t c)
      : pos(static_cast<size_t>(n * c)), neg(pos), pos_index(pos.size()), neg_index(pos.size()) {}
  std::vector<A> pos, neg;
  std::vector<int32_t> pos_index, neg_index;
};

// y: [n, P, C]; a place is right if what is there comes within `slack` of the best.
template <typename A>
void require_pool(const Pool<A>& pool, const std::vector<double>& y, int64_t n, int64_t p,
                  int64_t c, double slack, const char* what) {
  for (int64_t b = 0; b < n; ++b)
    for (int64_t j = 0; j < c; ++j) {
      const size_t k = static_cast<size_t>(b * c + j);
      double high = 0, low = 0;
      for (int64_t i = 0; i < p; ++i) {
        const double v = y[static_cast<size_t>((b * p + i) * c + j)];
        high = std::max(high, v);
        low = std::max(low, -v);
      }
      for (int side = 0; side < 2; ++side) {
        const double best = side ? low : high;
        const double value = static_cast<double>(side ? pool.neg[k] : pool.pos[k]);
        const int32_t place = side ? pool.neg_index[k] : pool.pos_index[k];
        require(std::abs(value - best) <= slack, what);
        require((place < 0) == (value == 0) && place < p, what);
        if (place < 0) continue;
        const double there = y[static_cast<size_t>((b * p + place) * c + j)];
        require(std::abs((side ? -there : there) - best) <= 2 * slack, what);
      }
    }
}

template <typename T>
void maps(int64_t n, int64_t p, int64_t c, int layout, int threads) {
  using A = typename Wide<T>::type;
  const auto x = owned<T>(n, p, c, layout);
  const size_t size = static_cast<size_t>(n * p * c), square = static_cast<size_t>(c * c);
  std::vector<double> plain(size);
  for (int64_t b = 0; b < n; ++b)
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = 0; j < c; ++j)
        plain[static_cast<size_t>((b * p + i) * c + j)] = at(x.map, b, i, j);

  Pool<A> pool(n, c);
  infodisent::mx_pool(x.map, pool.pos.data(), pool.neg.data(), pool.pos_index.data(),
                      pool.neg_index.data(), threads);
  require_pool(pool, plain, n, p, c, 0, "mx_pool");

  std::vector<A> rows(size);
  infodisent::rows(x.map, rows.data(), threads);
  for (size_t i = 0; i < size; ++i) require(static_cast<double>(rows[i]) == plain[i], "rows");

  const auto grad = numbers<A>(static_cast<size_t>(n * c), 3);
  const infodisent::Winners<A> winners{
      c, {grad.data(), grad.data()}, {pool.pos_index.data(), pool.neg_index.data()}};
  if (x.map.channel_stride == 1) {
    std::vector<A> du(square);
    infodisent::grad_u(x.map, winners, static_cast<const A*>(nullptr), du.data(), false, threads);
    infodisent::grad_u(x.map, winners, static_cast<const A*>(nullptr), du.data(), true, threads);
    for (int64_t i = 0; i < c; ++i)
      for (int64_t j = 0; j < c; ++j) {
        double sum = 0;
        for (int64_t b = 0; b < n; ++b)
          for (int32_t q : {pool.pos_index[static_cast<size_t>(b * c + i)],
                            pool.neg_index[static_cast<size_t>(b * c + i)]})
            if (q >= 0)
              sum += static_cast<double>(grad[static_cast<size_t>(b * c + i)]) *
                     plain[static_cast<size_t>((b * p + q) * c + j)];
        require(std::abs(static_cast<double>(du[static_cast<size_t>(i * c + j)]) - 2 * sum) < 1e-4,
                "grad_u");
      }
  }
  const auto u = numbers<A>(square, 5);
  std::vector<A> dx(size);
  infodisent::grad_x(u.data(), winners, static_cast<const A*>(nullptr), dx.data(), false, n, p, c,
                     threads);
  double total = 0, expected = 0;
  for (A v : dx) total += static_cast<double>(v);
  for (int64_t b = 0; b < n; ++b)
    for (int64_t j = 0; j < c; ++j) {
      const size_t k = static_cast<size_t>(b * c + j);
      const int sides = (pool.pos_index[k] >= 0) + (pool.neg_index[k] >= 0);
      for (int64_t i = 0; i < c; ++i)
        expected += sides * static_cast<double>(grad[k] * u[static_cast<size_t>(j * c + i)]);
    }
  require(std::abs(total - expected) < 1e-2, "grad_x");
}

template <typename U>
std::vector<double> rotated(const std::vector<double>& x, const std::vector<U>& u, int64_t rows,
                            int64_t c) {
  std::vector<double> y(x.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < c; ++j)
      for (int64_t k = 0; k < c; ++k)
        y[static_cast<size_t>(r * c + j)] +=
            static_cast<double>(widen(u[static_cast<size_t>(j * c + k)])) *
            x[static_cast<size_t>(r * c + k)];
  return y;
}

// Screening gives what the float tiles gave, bit for bit, with every kernel that this processor
// has.
template <typename T>
void screened(const infodisent::Map<T>& x, const std::vector<float>& u, const Pool<float>& wanted,
              int threads) {
  for (int isa : {1, 2, 3}) {
    Pool<float> pool(x.images, x.channels);
    int64_t done = 0;
    try {
      done = infodisent::rotate_pool_screened(x, u.data(), pool.pos.data(), pool.neg.data(),
                                              pool.pos_index.data(), pool.neg_index.data(), threads,
                                              isa);
    } catch (const std::invalid_argument&) {
      continue;
    }
    require(done >= 1 && done <= x.images, "rotate_pool_screened: images done");
    const size_t count = static_cast<size_t>(done * x.channels);
    const auto same = [count](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), count * sizeof a[0]) == 0;
    };
    require(same(pool.pos, wanted.pos) && same(pool.neg, wanted.neg) &&
                same(pool.pos_index, wanted.pos_index) && same(pool.neg_index, wanted.neg_index),
            "rotate_pool_screened");
  }
}

template <typename T>
void rotation_and_pool(int64_t n, int64_t p, int64_t c, int layout, int threads) {
  const auto x = owned<T>(n, p, c, layout);
  std::vector<double> plain;
  for (int64_t b = 0; b < n; ++b)
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = 0; j < c; ++j) plain.push_back(at(x.map, b, i, j));
  const auto u = numbers<float>(static_cast<size_t>(c * c), 5);
  const auto y = rotated(plain, u, n * p, c);
  Pool<float> pool(n, c);
  for (int isa : {0, 1, 2}) {
    try {
      infodisent::rotate_pool(x.map, u.data(), pool.pos.data(), pool.neg.data(),
                              pool.pos_index.data(), pool.neg_index.data(), threads, isa);
    } catch (const std::invalid_argument&) {
      continue;  // this processor has no such instructions
    }
    require_pool(pool, y, n, p, c, 1e-4, "rotate_pool");
    if (isa == 0) screened(x.map, u, pool, threads);
  }
  if constexpr (std::is_same<T, BFloat16>::value) {
    std::vector<BFloat16> half;
    for (float v : u) half.push_back(narrowed<BFloat16>(static_cast<double>(v)));
    if (!infodisent::has_pairs() || c % 2) return;
    infodisent::rotate_pool_pairs(x.map, half.data(), pool.pos.data(), pool.neg.data(),
                                  pool.pos_index.data(), pool.neg_index.data(), threads);
    require_pool(pool, rotated(plain, half, n * p, c), n, p, c, 1e-4, "rotate_pool_pairs");
  }
}

// Distances, cosines and products with m prototypes, every second pixel of the first image hidden;
// prototype 0 is a pixel. Then the gradient of a distance: 0 in sum for rows that are their
// winners.
template <typename T>
void similarities(int64_t n, int64_t p, int64_t c, int64_t m, int layout, int threads) {
  const auto x = owned<T>(n, p, c, layout);
  auto v = numbers<float>(static_cast<size_t>(m * c), 7);
  for (int64_t j = 0; j < c; ++j)
    v[static_cast<size_t>(j)] = static_cast<float>(at(x.map, n - 1, p - 1, j));
  std::vector<uint8_t> valid(static_cast<size_t>(n * p), 1);
  for (int64_t i = 1; i < p; i += 2) valid[static_cast<size_t>(i)] = 0;
  const size_t count = static_cast<size_t>(n * m);
  std::vector<float> value[2] = {std::vector<float>(count), std::vector<float>(count)};
  std::vector<int32_t> index[2] = {std::vector<int32_t>(count), std::vector<int32_t>(count)};
  using infodisent::Similarity;
  const std::pair<Similarity, Similarity> asked[] = {{Similarity::kL2, Similarity::kDot},
                                                     {Similarity::kCosine, Similarity::kL2}};
  for (int isa : {0, 1, 2})
    for (const auto& [first, second] : asked) {
      const infodisent::Matches matches{2,
                                        {first, second},
                                        {value[0].data(), value[1].data()},
                                        {index[0].data(), index[1].data()}};
      try {
        infodisent::similarity_pool(x.map, v.data(), m, valid.data(), matches, threads, isa);
      } catch (const std::invalid_argument&) {
        continue;
      }
      for (int side = 0; side < 2; ++side)
        for (size_t i = 0; i < count; ++i) {
          const int64_t b = static_cast<int64_t>(i) / m, k = static_cast<int64_t>(i) % m;
          const int32_t q = index[side][i];
          require(q >= 0 && q < p && valid[static_cast<size_t>(b * p + q)] != 0, "a valid place");
          double dot = 0, distance = 0, norm = 0, length = 0;
          for (int64_t j = 0; j < c; ++j) {
            const double a = at(x.map, b, q, j), e = v[static_cast<size_t>(k * c + j)];
            dot += a * e, distance += (a - e) * (a - e), norm += a * a, length += e * e;
          }
          const Similarity kind = side ? second : first;
          const double scale = std::sqrt(norm * length);
          const double truth = kind == Similarity::kDot  ? dot
                               : kind == Similarity::kL2 ? distance
                               : scale > 0               ? dot / scale
                                                         : 0;
          require(std::abs(truth - static_cast<double>(value[side][i])) <= 1e-4 * (1 + norm),
                  "similarity_pool");
        }
      const int of_l2 = first == Similarity::kL2 ? 0 : 1;
      require(value[of_l2][static_cast<size_t>((n - 1) * m)] == 0.0f, "a distance of 0");
    }
}

template <typename T>
void all_maps() {
  for (int threads : {1, 3})
    for (int layout : {0, 1, 2})
      for (int64_t c : {1, 2, 15, 16, 17, 64, 65, 130})
        for (int64_t p : {1, 5, 6, 49}) {
          maps<T>(3, p, c, layout, threads);
          if constexpr (!std::is_same<T, double>::value)
            rotation_and_pool<T>(3, p, c, layout, threads);
          if constexpr (!std::is_same<T, double>::value)
            similarities<T>(3, p, c, c == 17 ? 130 : 5, layout, threads);
        }
}

}  // namespace

int main() {
  for (int threads : {1, 3})
    for (int64_t n : {1, 2, 3, 17, 63, 64, 65, 129}) {
      rotation_passes<float>(n, threads);
      rotation_passes<double>(n, threads);
    }
  all_maps<float>();
  all_maps<double>();
  all_maps<BFloat16>();
  all_maps<Float16>();
  std::puts("clean");
}
