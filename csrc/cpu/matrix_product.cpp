#include "matrix_product.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "rotate_pool_tiles.h"
#include "transpose.h"

namespace infodisent {
namespace {

// Rows of `a` that a task multiplies with a panel of b: enough to pay for packing the panel.
constexpr int64_t kTaskRows = 384;
// Rows after which what was computed is mirrored, while it is in the first cache.
constexpr int64_t kBandRows = 96;
static_assert(kTaskRows % kBandRows == 0 && kBandRows % kRows == 0 && kBandRows % kSquare == 0,
              "whole tiles and squares");

// to[j][i] = sign * from[i][j] for an h x w block; both have rows of n.
INFODISENT_CLONES void mirror_block(const float* from, int64_t h, int64_t w, float sign, int64_t n,
                                    float* to) {
  for (int64_t i = 0; i < h; i += kSquare)
    for (int64_t j = 0; j < w; j += kSquare) {
      if (i + kSquare > h || j + kSquare > w) {
        for (int64_t r = i; r < std::min(h, i + kSquare); ++r)
          for (int64_t c = j; c < std::min(w, j + kSquare); ++c)
            to[c * n + r] = sign * from[r * n + c];
        continue;
      }
      typedef float Line __attribute__((vector_size(4 * kSquare)));
      Words square[kSquare];
#pragma GCC unroll 16
      for (int r = 0; r < kSquare; ++r)
        std::memcpy(&square[r], from + (i + r) * n + j, sizeof(Words));
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < kSquare; ++r) {
        Line line;
        std::memcpy(&line, &square[r], sizeof line);
        line *= sign;
        std::memcpy(to + (j + r) * n + i, &line, sizeof line);
      }
    }
}

class Product {
 public:
  Product(const Factor& a, const Factor& b, float* out, const float* addend, float scale,
          int parity, int64_t n, const Part& part, const TileKernel<float>& kernel)
      : a_(a),
        b_(b),
        out_(out),
        addend_(addend),
        scale_(scale),
        parity_(parity),
        n_(n),
        rows_(part.rows),
        columns_(part.columns),
        mirrors_(parity != 0 && part.mirrored),
        block_(sum_block(n)),
        kernel_(kernel) {}

  void run(int threads) {
    const int64_t width = kernel_.width;
    std::vector<Task> tasks;
    for (int64_t j0 = columns_.first; j0 < columns_.last; j0 += width) {
      // the tiles of rows begin at a multiple of kRows, also above the diagonal
      const int64_t top = std::max(rows_.first, parity_ ? j0 / kRows * kRows : 0);
      for (int64_t i0 = top; i0 < rows_.last; i0 += kTaskRows)
        tasks.push_back({i0, std::min(rows_.last, i0 + kTaskRows), j0});
    }
    const int count = static_cast<int>(tasks.size()), team = std::min(threads, count);
    auto panel = buffer<float>(team * n_ * width);
    auto packed = buffer<float>(a_.transposed ? (n_ + kRows - 1) / kRows * n_ * kRows : 0);
#pragma omp parallel num_threads(team) if (team > 1)
    {
      const int me = thread_number();
      if (a_.transposed) {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < n_; k += kSquare)
          pack_rows(k, std::min(n_, k + kSquare), packed.get());
      }
      float* mine = panel.get() + me * n_ * width;
      int64_t holds = -1;
#pragma omp for schedule(dynamic, 1)
      for (int t = 0; t < count; ++t) {
        if (holds != tasks[t].j0) pack_panel_of_b(tasks[t].j0, mine);
        holds = tasks[t].j0;
        multiply(tasks[t], packed.get(), mine);
      }
    }
  }

 private:
  struct Task {
    int64_t i0, i1, j0;
  };

  // Rows of a^T, kRows side by side, as a tile reads them: terms k0 ... k1.
  void pack_rows(int64_t k0, int64_t k1, float* packed) const {
    for (int64_t i = rows_.first; i < rows_.last; i += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, n_ - i);
      float* to = packed + i * n_;
      for (int64_t k = k0; k < k1; ++k) {
        const float* from = a_.data + k * n_ + i;
        for (int64_t r = 0; r < kRows; ++r) to[k * kRows + r] = r < rows ? from[r] : 0.0f;
      }
    }
  }

  void pack_panel_of_b(int64_t j0, float* panel) const {
    if (b_.transposed) {
      kernel_.pack(b_.data + j0 * n_, n_ - j0, n_, panel);
      return;
    }
    const int64_t width = kernel_.width, used = std::min(width, columns_.last - j0);
    for (int64_t k = 0; k < n_; ++k) {
      std::memcpy(panel + k * width, b_.data + k * n_ + j0,
                  static_cast<size_t>(used) * sizeof(float));
      std::fill(panel + k * width + used, panel + (k + 1) * width, 0.0f);
    }
  }

  void multiply(const Task& task, const float* packed, const float* panel) const {
    const int64_t width = kernel_.width, used = std::min(width, columns_.last - task.j0);
    alignas(64) float sum[kRows * kMostWidth];
    for (int64_t band = task.i0; band < task.i1; band += kBandRows) {
      const int64_t end = std::min(task.i1, band + kBandRows);
      for (int64_t i = band; i < end; i += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, end - i);
        const float* row[kRows];
        for (int64_t r = 0; r < kRows; ++r)
          row[r] = a_.transposed ? packed + i * n_ + r : a_.data + (i + std::min(r, rows - 1)) * n_;
        kernel_.product(row, a_.transposed, panel, n_, block_, sum);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t at = (i + r) * n_ + task.j0;
          const float* from = sum + r * width;
          // above the diagonal is the mirror's
          const int64_t most = parity_ ? std::min(used, i + r - task.j0 + 1) : used;
          if (addend_ != nullptr)
            for (int64_t j = 0; j < most; ++j) out_[at + j] = from[j] + scale_ * addend_[at + j];
          else
            for (int64_t j = 0; j < most; ++j) out_[at + j] = from[j];
        }
      }
      if (mirrors_) mirror(band, end, task.j0, used);
    }
  }

  // Rows i0 ... i1 of a panel to where they stand in the other half.
  void mirror(int64_t i0, int64_t i1, int64_t j0, int64_t used) const {
    const float sign = static_cast<float>(parity_);
    const int64_t below =
        std::min(i1, std::max(i0, j0 + used));  // from here on it is below the square
    for (int64_t i = std::max(i0, j0); i < below; ++i) {
      for (int64_t j = j0; j < i; ++j) out_[j * n_ + i] = sign * out_[i * n_ + j];
      if (parity_ < 0) out_[i * n_ + i] = 0;
    }
    if (below < i1)
      mirror_block(out_ + below * n_ + j0, i1 - below, used, sign, n_, out_ + j0 * n_ + below);
  }

  const Factor a_, b_;
  float* const out_;
  const float* const addend_;
  const float scale_;
  const int parity_;
  const int64_t n_;
  const Range rows_, columns_;
  const bool mirrors_;
  const int64_t block_;
  const TileKernel<float>& kernel_;
};

}  // namespace

void matrix_product(const Factor& a, const Factor& b, float* out, const float* addend, float scale,
                    int parity, int64_t n, const Part& part, int threads) {
  const TileKernel<float>* kernel = float_tile(Isa::kAuto);
  if (kernel == nullptr) throw std::invalid_argument("matrix_product: no such instructions here");
  const Range rows = part.rows, columns = part.columns;
  if (rows.first % kRows != 0 || (rows.last % kRows != 0 && rows.last != n))
    throw std::invalid_argument("matrix_product: rows must begin and end with a tile");
  for (const Range& range : {rows, columns})
    if (range.first < 0 || range.last > n)
      throw std::invalid_argument("matrix_product: rows and columns must be those of the result");
  if (rows.first < rows.last && columns.first < columns.last)
    Product(a, b, out, addend, scale, parity, n, part, *kernel).run(threads);
}

}  // namespace infodisent
