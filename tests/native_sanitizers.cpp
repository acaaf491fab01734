// Every function of csrc/ at awkward sizes, for AddressSanitizer and UndefinedBehaviorSanitizer.
// Buffers are exactly as long as they must be, so that a read or a write beyond one is reported.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "rotation.h"

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
  infodisent::combine<T>(in, 3, out, 3, c, parity, n, threads);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const size_t ij = static_cast<size_t>(i * n + j), ji = static_cast<size_t>(j * n + i);
      require(std::abs(x[ij] - (a[ij] + T(0.5) * b[ij])) < 1e-5, "combine, no parity");
      require(std::abs(y[ij] - (2 * a[ij] + 2 * a[ji])) < 1e-5, "combine, symmetric");
      require(std::abs(z[ij] - (b[ji] - b[ij])) < 1e-5, "combine, skew");
    }
  const T* self[] = {x.data()};
  T* same[] = {x.data()};
  const double one[] = {1};
  infodisent::combine<T>(self, 1, same, 1, one, parity + 2, n, threads);  // in place
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

}  // namespace

int main() {
  for (int threads : {1, 3})
    for (int64_t n : {1, 2, 3, 17, 63, 64, 65, 129}) {
      rotation_passes<float>(n, threads);
      rotation_passes<double>(n, threads);
    }
  std::puts("clean");
}
