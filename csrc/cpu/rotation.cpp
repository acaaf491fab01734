#include "rotation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"

namespace infodisent {
namespace {

// Tiles of 64 x 64: a pair of them for every input term streams through L1, and the two local
// tiles of an output stay there while they are transposed.
constexpr int64_t kTile = 64;
// Rows of the local tiles are padded: a row length that is a multiple of 4 KiB would put a
// column of the transposed read into one cache set.
constexpr int64_t kPad = kTile + 1;

template <typename T>
struct Job {
  const T* const* in;
  int terms;
  T* const* out;
  int rows;
  const double* coefficient;
  const int* parity;
  int64_t n;
};

// local[i][j] = sum_k c[k] in_k[i0 + i][j0 + j], h x w of them.
template <typename T>
INFODISENT_INLINE void load(const Job<T>& job, const double* c, int64_t i0, int64_t j0, int64_t h,
                            int64_t w, T* local) {
  for (int64_t i = 0; i < h; ++i) {
    T* row = local + i * kPad;
    bool first = true;
    for (int k = 0; k < job.terms; ++k) {
      if (c[k] == 0) continue;
      const T a = static_cast<T>(c[k]);
      const T* x = job.in[k] + (i0 + i) * job.n + j0;
      if (first)
        for (int64_t j = 0; j < w; ++j) row[j] = a * x[j];
      else
        for (int64_t j = 0; j < w; ++j) row[j] += a * x[j];
      first = false;
    }
    if (first) std::fill(row, row + w, T(0));
  }
}

// out[i0 + i][j0 + j] = a[i][j] + sign * b[j][i]; b may be null for no second term.
template <typename T>
INFODISENT_INLINE void store(T* out, int64_t n, int64_t i0, int64_t j0, int64_t h, int64_t w,
                             const T* a, const T* b, T sign) {
  for (int64_t i = 0; i < h; ++i) {
    T* row = out + (i0 + i) * n + j0;
    const T* x = a + i * kPad;
    if (b == nullptr)
      std::memcpy(row, x, static_cast<size_t>(w) * sizeof(T));
    else
      for (int64_t j = 0; j < w; ++j) row[j] = x[j] + sign * b[j * kPad + i];
  }
}

// One pair of tiles, (I, J) and (J, I), or the one tile of I == J, for every output.
template <typename T>
INFODISENT_INLINE void tile_pair(const Job<T>& job, int64_t i0, int64_t j0,
                                 T* local /* [rows, 2, kTile, kPad] */) {
  const int64_t h = std::min(kTile, job.n - i0), w = std::min(kTile, job.n - j0);
  const bool off = i0 != j0;
  // every output is formed before the first is written, since an output may also be an input
  for (int r = 0; r < job.rows; ++r) {
    const double* c = job.coefficient + r * job.terms;
    T* here = local + 2 * r * kTile * kPad;
    load(job, c, i0, j0, h, w, here);
    if (off) load(job, c, j0, i0, w, h, here + kTile * kPad);
  }
  for (int r = 0; r < job.rows; ++r) {
    const T* here = local + 2 * r * kTile * kPad;
    const T* there = off ? here + kTile * kPad : here;
    const T sign = static_cast<T>(job.parity[r]);
    T* out = job.out[r];
    store(out, job.n, i0, j0, h, w, here, job.parity[r] ? there : nullptr, sign);
    if (off) store(out, job.n, j0, i0, w, h, there, job.parity[r] ? here : nullptr, sign);
  }
}

INFODISENT_CLONES void tile_pair_f32(const Job<float>& job, int64_t i0, int64_t j0, float* local) {
  tile_pair(job, i0, j0, local);
}
INFODISENT_CLONES void tile_pair_f64(const Job<double>& job, int64_t i0, int64_t j0,
                                     double* local) {
  tile_pair(job, i0, j0, local);
}
inline void run(const Job<float>& job, int64_t i0, int64_t j0, float* local) {
  tile_pair_f32(job, i0, j0, local);
}
inline void run(const Job<double>& job, int64_t i0, int64_t j0, double* local) {
  tile_pair_f64(job, i0, j0, local);
}

template <typename T>
INFODISENT_INLINE void row_norms(const T* x, int64_t n, double* one, double* squares) {
  // float sums over short runs, double over the runs: fast, and exact enough for a bound
  double s1 = 0, s2 = 0;
  for (int64_t j0 = 0; j0 < n; j0 += 256) {
    const int64_t end = std::min(n, j0 + 256);
    T a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (int64_t j = j0; j < end; ++j) {
      a += std::abs(x[j]);
      b += x[j] * x[j];
    }
    s1 += static_cast<double>(a);
    s2 += static_cast<double>(b);
  }
  *one = s1;
  *squares = s2;
}

INFODISENT_CLONES void row_norms_f32(const float* x, int64_t n, double* one, double* squares) {
  row_norms(x, n, one, squares);
}
INFODISENT_CLONES void row_norms_f64(const double* x, int64_t n, double* one, double* squares) {
  row_norms(x, n, one, squares);
}
inline void row(const float* x, int64_t n, double* one, double* squares) {
  row_norms_f32(x, n, one, squares);
}
inline void row(const double* x, int64_t n, double* one, double* squares) {
  row_norms_f64(x, n, one, squares);
}

inline int64_t tiles(int64_t n) { return (n + kTile - 1) / kTile; }

// The pair (i, j), i <= j, that number p of the upper triangle of a t x t grid stands for.
inline void pair_of(int64_t p, int64_t t, int64_t* i, int64_t* j) {
  int64_t row = 0;
  while (p >= t - row) p -= t - row++;
  *i = row;
  *j = row + p;
}

}  // namespace

template <typename T>
void combine(const T* const* in, int terms, T* const* out, int rows, const double* coefficient,
             const int* parity, int64_t n, Share share, int threads) {
  const Job<T> job{in, terms, out, rows, coefficient, parity, n};
  const int64_t t = tiles(n), pairs = t * (t + 1) / 2;
  const int64_t first = pairs * share.number / share.count;
  const int64_t last = pairs * (share.number + 1) / share.count;
  const int team = static_cast<int>(std::clamp<int64_t>(last - first, 1, std::max(threads, 1)));
#pragma omp parallel num_threads(team)
  {
    std::vector<T> local(static_cast<size_t>(2 * rows * kTile * kPad));
#pragma omp for schedule(dynamic, 4)
    for (int64_t p = first; p < last; ++p) {
      int64_t i, j;
      pair_of(p, t, &i, &j);
      run(job, i * kTile, j * kTile, local.data());
    }
  }
  (void)team;
}

template <typename T>
void mirror(T* x, int64_t n, double sign, int threads) {
  const int64_t t = tiles(n), pairs = t * (t + 1) / 2;
  const int team = static_cast<int>(std::min<int64_t>(std::max(threads, 1), pairs));
  const T s = static_cast<T>(sign);
#pragma omp parallel for num_threads(team) schedule(dynamic, 4)
  for (int64_t p = 0; p < pairs; ++p) {
    int64_t a, b;
    pair_of(p, t, &a, &b);
    const int64_t i0 = a * kTile, j0 = b * kTile;
    const int64_t i1 = std::min(n, i0 + kTile), j1 = std::min(n, j0 + kTile);
    T local[kTile * kPad];
    for (int64_t j = j0; j < j1; ++j)  // rows of the lower tile, contiguous
      std::memcpy(local + (j - j0) * kPad, x + j * n + i0,
                  static_cast<size_t>(i1 - i0) * sizeof(T));
    for (int64_t i = i0; i < i1; ++i)
      for (int64_t j = std::max(j0, i + 1); j < j1; ++j)
        x[i * n + j] = s * local[(j - j0) * kPad + (i - i0)];
  }
  (void)team;
}

template <typename T>
void norms(const T* x, int64_t n, double* result, int threads) {
  const int team = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tiles(n)));
  std::vector<double> one(static_cast<size_t>(n)), squares(static_cast<size_t>(n));
#pragma omp parallel for num_threads(team) schedule(static)
  for (int64_t i = 0; i < n; ++i) row(x + i * n, n, &one[i], &squares[i]);
  // summed in row order: the same result for any number of threads
  double largest = 0, total = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!(one[i] <= largest)) largest = one[i];  // a NaN stays: no comparison with it is true
    if (std::isnan(largest)) largest = std::numeric_limits<double>::quiet_NaN();
    total += squares[i];
  }
  result[0] = std::isnan(total) ? std::numeric_limits<double>::quiet_NaN() : largest;
  result[1] = total;
  (void)team;
}

#define INSTANTIATE(T)                                                                      \
  template void combine<T>(const T* const*, int, T* const*, int, const double*, const int*, \
                           int64_t, Share, int);                                            \
  template void mirror<T>(T*, int64_t, double, int);                                        \
  template void norms<T>(const T*, int64_t, double*, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace infodisent
