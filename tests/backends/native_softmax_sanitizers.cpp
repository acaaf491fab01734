// The functions of softmax_pool and softmax_alignment at awkward sizes against plain loops, for
// AddressSanitizer and UndefinedBehaviorSanitizer. Buffers are exactly as long as they must be.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "softmax_alignment.h"
#include "softmax_pool.h"

namespace {

using infodisent::BFloat16;
using infodisent::Float16;
using infodisent::Map;
using infodisent::Target;
using infodisent::Wide;
using infodisent::widen;

void require(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "wrong result: %s\n", what);
    std::exit(1);
  }
}

// Small numbers that every type holds exactly: k / 4, |k| <= 12.
template <typename T>
T quarter(int k) {
  const float value = static_cast<float>(k) / 4;
  if constexpr (std::is_same<T, float>::value || std::is_same<T, double>::value) {
    return static_cast<T>(value);
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if constexpr (std::is_same<T, BFloat16>::value) return {static_cast<uint16_t>(bits >> 16)};
    if (k == 0) return T{0};
    const uint32_t exponent = (bits >> 23 & 255) - 127 + 15;
    return T{static_cast<uint16_t>((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 1023))};
  }
}

struct Draw {
  unsigned seed;
  int operator()(int count) {
    seed = seed * 1664525u + 1013904223u;
    return static_cast<int>(seed >> 8) % count;
  }
};

// 0: channels last, 1: pixels last, 2: every second number.
template <typename T>
Map<T> shaped(const T* data, int64_t n, int64_t p, int64_t c, int layout) {
  const int64_t s = layout == 2 ? 2 : 1;
  return layout == 1 ? Map<T>{data, n, p, c, p * c, 1, p}
                     : Map<T>{data, n, p, c, s * p * c, s * c, s};
}
template <typename A>
Target<A> target(A* data, int64_t p, int64_t c, int layout) {
  const auto map = shaped<A>(data, 1, p, c, layout);
  return {data, map.image_stride, map.pixel_stride, map.channel_stride};
}
template <typename M>
int64_t place(const M& x, int64_t b, int64_t p, int64_t m) {
  return b * x.image_stride + p * x.pixel_stride + m * x.channel_stride;
}

template <typename T>
std::vector<T> scores(int64_t n, int64_t p, int64_t c, int layout, unsigned seed) {
  Draw draw{seed};
  const int64_t size = n * p * c * (layout == 2 ? 2 : 1) - (layout == 2 ? 1 : 0);
  std::vector<T> x;
  for (int64_t i = 0; i < size; ++i) x.push_back(quarter<T>(draw(25) - 12));
  return x;
}

template <typename T>
void pool(int64_t n, int64_t p, int64_t c, int layout, int threads, bool masked, bool biased) {
  using A = typename Wide<T>::type;
  const auto memory = scores<T>(n, p, c, layout, 1);
  const auto x = shaped(memory.data(), n, p, c, layout);
  Draw draw{5};
  const size_t columns = static_cast<size_t>(n * c), pixels = static_cast<size_t>(n * p);
  std::vector<A> bias(static_cast<size_t>(c)), value(columns), top(pixels), sum(pixels);
  std::vector<A> grad(columns);
  std::vector<uint8_t> valid(pixels);
  for (auto& b : bias) b = static_cast<A>(draw(8) - 4) / 8;
  for (auto& g : grad) g = static_cast<A>(draw(9) - 4);
  for (size_t i = 0; i < pixels; ++i)
    valid[i] = i % static_cast<size_t>(p) == 0 || draw(2) == 1 ? 1 : 0;
  std::vector<int32_t> index(columns);
  const infodisent::Scores<T> s{x, biased ? bias.data() : nullptr, A(0.5),
                                masked ? valid.data() : nullptr};
  infodisent::softmax_pool<T>(s, value.data(), index.data(), top.data(), sum.data(), threads);
  for (const int other : {layout, 1 - layout % 2}) {  // the gradient's own layout
    const int64_t gap = other == 2 ? 2 : 1;
    std::vector<A> dx(static_cast<size_t>(n * p * c * gap - (gap - 1)), A(7));
    const auto to = target(dx.data(), p, c, other);
    for (const bool add : {false, true})  // twice the gradient, and nothing of what was there
      infodisent::softmax_pool_backward<T>(s, grad.data(), value.data(), index.data(), top.data(),
                                           sum.data(), to, add, threads);
    for (int64_t b = 0; b < n; ++b) {
      std::vector<double> every(static_cast<size_t>(p * c));
      for (int64_t i = 0; i < p; ++i) {
        double total = 0;
        for (int64_t m = 0; m < c; ++m) {
          const double w =
              static_cast<double>(widen(memory[static_cast<size_t>(place(x, b, i, m))])) +
              (biased ? static_cast<double>(bias[static_cast<size_t>(m)]) : 0.0);
          total += every[static_cast<size_t>(i * c + m)] = std::exp(w / 2);
        }
        for (int64_t m = 0; m < c; ++m) every[static_cast<size_t>(i * c + m)] /= total;
      }
      std::vector<double> common(static_cast<size_t>(p));
      for (int64_t m = 0; m < c; ++m) {
        const size_t k = static_cast<size_t>(b * c + m), q = static_cast<size_t>(index[k]);
        require(q < static_cast<size_t>(p), "softmax_pool: place");
        require(!masked || valid[static_cast<size_t>(b * p) + q] == 1, "softmax_pool: mask");
        const double there = every[q * static_cast<size_t>(c) + static_cast<size_t>(m)];
        for (int64_t i = 0; i < p; ++i)
          require((masked && valid[static_cast<size_t>(b * p + i)] == 0) ||
                      every[static_cast<size_t>(i * c + m)] <= there + 1e-6,
                  "softmax_pool: not the largest");
        require(std::abs(static_cast<double>(value[k]) - there) < 2e-6, "softmax_pool: value");
        common[q] += static_cast<double>(grad[k]) * there;
      }
      for (int64_t i = 0; i < p; ++i)
        for (int64_t m = 0; m < c; ++m) {
          const size_t k = static_cast<size_t>(b * c + m);
          const double own = index[k] == i ? static_cast<double>(grad[k]) : 0.0;
          const double wanted =
              every[static_cast<size_t>(i * c + m)] * (own - common[static_cast<size_t>(i)]);
          const double ours = static_cast<double>(dx[static_cast<size_t>(place(to, b, i, m))]);
          require(std::abs(ours - wanted) < 2e-5, "softmax_pool_backward");
        }
    }
  }
}

template <typename T>
void alignment(int64_t n, int64_t p, int64_t c, int layout, int threads) {
  using A = typename Wide<T>::type;
  const int other = (layout + 1) % 3;
  const auto first = scores<T>(n, p, c, layout, 1), second = scores<T>(n, p, c, other, 2);
  const auto a = shaped(first.data(), n, p, c, layout);
  const auto b = shaped(second.data(), n, p, c, other);
  const size_t pixels = static_cast<size_t>(n * p);
  std::vector<A> loss(pixels), kept(6 * pixels), grad(pixels, A(0.5));
  A* k = kept.data();
  const size_t s = pixels;
  infodisent::softmax_alignment<T>(a, b, loss.data(),
                                   {k, k + s, k + 2 * s, k + 3 * s, k + 4 * s, k + 5 * s}, threads);
  std::vector<A> da(static_cast<size_t>(n * p * c)), db(da.size());
  const int written = layout == 1 ? 1 : 0;
  const auto to_a = target(da.data(), p, c, written), to_b = target(db.data(), p, c, written);
  for (int sides : {3, 1, 2})
    infodisent::softmax_alignment_backward<T>(
        a, b, grad.data(), {k, k + s, k + 2 * s, k + 3 * s, k + 4 * s, k + 5 * s},
        sides & 1 ? to_a : Target<A>{}, sides & 2 ? to_b : Target<A>{}, threads);
  for (int64_t i = 0; i < n * p; ++i) {
    std::vector<double> u, v;
    double sum_u = 0, sum_v = 0, both = 0;
    for (int64_t m = 0; m < c; ++m) {
      const auto at_a = static_cast<size_t>(place(a, i / p, i % p, m));
      const auto at_b = static_cast<size_t>(place(b, i / p, i % p, m));
      u.push_back(std::exp(static_cast<double>(widen(first[at_a]))));
      v.push_back(std::exp(static_cast<double>(widen(second[at_b]))));
      sum_u += u.back();
      sum_v += v.back();
      both += u.back() * v.back();
    }
    const double wanted = std::log(sum_u) + std::log(sum_v) - std::log(both);
    require(std::abs(static_cast<double>(loss[static_cast<size_t>(i)]) - wanted) < 1e-5,
            "softmax_alignment");
    for (int64_t m = 0; m < c; ++m) {
      const size_t j = static_cast<size_t>(m);
      const auto at = static_cast<size_t>(place(to_a, i / p, i % p, m));
      const double joint = u[j] * v[j] / both;
      require(std::abs(static_cast<double>(da[at]) - (u[j] / sum_u - joint) / 2) < 1e-5 &&
                  std::abs(static_cast<double>(db[at]) - (v[j] / sum_v - joint) / 2) < 1e-5,
              "softmax_alignment_backward");
    }
  }
}

template <typename T>
void all() {
  for (int threads : {1, 3})
    for (int layout : {0, 1, 2})
      for (int64_t c : {1, 7, 8, 16, 17, 70})
        for (int64_t p : {1, 5, 16, 49, 70}) {
          for (int mode = 0; mode < 4; ++mode)
            pool<T>(3, p, c, layout, threads, (mode & 1) != 0, (mode & 2) != 0);
          alignment<T>(3, p, c, layout, threads);
        }
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  all<BFloat16>();
  all<Float16>();
  std::puts("clean");
}
