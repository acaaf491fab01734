// The module infodisent._C. It knows nothing of torch: pointers are integers, as
// tensor.data_ptr() gives them; infodisent/backends/native checks shapes, dtypes and strides first.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "address.h"
#include "matrix_product.h"
#include "mx_pool.h"
#include "parallel.h"
#include "rotate_pool.h"
#include "rotate_pool_screen.h"
#include "rotation.h"
#include "similarity_pool.h"
#include "softmax_alignment.h"
#include "softmax_pool.h"

namespace py = pybind11;
using infodisent::Address;
using infodisent::at;

namespace {

template <typename T>
void combine(const std::vector<Address>& in, const std::vector<Address>& out,
             const std::vector<double>& coefficient, const std::vector<int>& parity, int64_t n,
             infodisent::Share share, int threads) {
  std::vector<const T*> sources;
  std::vector<T*> targets;
  for (Address a : in) sources.push_back(reinterpret_cast<const T*>(a));
  for (Address a : out) targets.push_back(reinterpret_cast<T*>(a));
  py::gil_scoped_release free;
  infodisent::combine<T>(sources.data(), static_cast<int>(in.size()), targets.data(),
                         static_cast<int>(out.size()), coefficient.data(), parity.data(), n, share,
                         threads);
}

void combine_any(const std::vector<Address>& in, const std::vector<Address>& out,
                 const std::vector<double>& coefficient, const std::vector<int>& parity, int64_t n,
                 bool wide, std::pair<int, int> share, int threads) {
  if (coefficient.size() != in.size() * out.size() || parity.size() != out.size() || n < 1)
    throw std::invalid_argument("combine: sizes of the arguments do not match");
  if (share.first < 0 || share.first >= share.second)
    throw std::invalid_argument("combine: no such share");
  (wide ? combine<double> : combine<float>)(in, out, coefficient, parity, n,
                                            {share.first, share.second}, threads);
}

using Ends = std::pair<int64_t, int64_t>;

void matrix_product(Address a, bool a_transposed, Address b, bool b_transposed, Address out,
                    Address addend, double scale, int parity, int64_t n, Ends rows, Ends columns,
                    bool mirrored, int threads) {
  const infodisent::Part part{{rows.first, rows.second}, {columns.first, columns.second}, mirrored};
  py::gil_scoped_release free;
  infodisent::matrix_product({at<const float>(a), a_transposed}, {at<const float>(b), b_transposed},
                             at<float>(out), at<const float>(addend), static_cast<float>(scale),
                             parity, n, part, threads);
}

void mirror(Address x, int64_t n, double sign, bool wide, int threads) {
  py::gil_scoped_release free;
  if (wide)
    infodisent::mirror(reinterpret_cast<double*>(x), n, sign, threads);
  else
    infodisent::mirror(reinterpret_cast<float*>(x), n, sign, threads);
}

std::pair<double, double> norms(Address x, int64_t n, bool wide, int threads) {
  double result[2];
  {
    py::gil_scoped_release free;
    if (wide)
      infodisent::norms(reinterpret_cast<const double*>(x), n, result, threads);
    else
      infodisent::norms(reinterpret_cast<const float*>(x), n, result, threads);
  }
  return {result[0], result[1]};
}

// Calls f with a Map of the element type that `dtype` stands for; the codes are those of
// infodisent/backends/native.
template <typename F>
void with_map(int dtype, Address x, int64_t images, int64_t pixels, int64_t channels,
              int64_t image_stride, int64_t pixel_stride, int64_t channel_stride, F f) {
  using namespace infodisent;
  const auto run = [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    py::gil_scoped_release free;
    f(Map<T>{data, images, pixels, channels, image_stride, pixel_stride, channel_stride});
  };
  if (dtype == 0)
    run(at<const float>(x));
  else if (dtype == 1)
    run(at<const BFloat16>(x));
  else if (dtype == 2)
    run(at<const Float16>(x));
  else if (dtype == 3)
    run(at<const double>(x));
  else
    throw std::invalid_argument("unknown dtype code");
}

template <typename M>
using WideOf = typename infodisent::Wide<
    std::remove_const_t<std::remove_pointer_t<decltype(std::declval<M>().data)>>>::type;

void mx_pool(Address y, int dtype, int64_t images, int64_t pixels, int64_t channels,
             int64_t image_stride, int64_t pixel_stride, int64_t channel_stride, Address pos,
             Address neg, Address pos_index, Address neg_index, int threads) {
  with_map(dtype, y, images, pixels, channels, image_stride, pixel_stride, channel_stride,
           [&](const auto& map) {
             using A = WideOf<decltype(map)>;
             infodisent::mx_pool(map, at<A>(pos), at<A>(neg), at<int32_t>(pos_index),
                                 at<int32_t>(neg_index), threads);
           });
}

// `screen`: 0 where it pays, 1 never, 2 always, 3 always and with plain arithmetic.
template <typename T>
void rotate_pool_float(const infodisent::Map<T>& x, const float* u, float* pos, float* neg,
                       int32_t* pos_index, int32_t* neg_index, int threads, int isa, int screen) {
  using namespace infodisent;
  if (screen == 0) screen = isa == 0 && screen_pays(x.images, x.pixels, x.channels) ? 2 : 1;
  const int kernels = screen == 3 ? static_cast<int>(ScreenIsa::kPlain) : isa;
  const int64_t done =
      screen == 1 ? 0
                  : rotate_pool_screened(x, u, pos, neg, pos_index, neg_index, threads, kernels);
  if (done == x.images) return;
  Map<T> rest = x;
  rest.data += done * x.image_stride;
  rest.images -= done;
  const int64_t at = done * x.channels;
  infodisent::rotate_pool(rest, u, pos + at, neg + at, pos_index + at, neg_index + at, threads,
                          isa);
}

// u_dtype: of U, the same codes; bfloat16 with bfloat16 is multiplied as such.
void rotate_pool(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
                 int64_t image_stride, int64_t pixel_stride, int64_t channel_stride, Address u,
                 int u_dtype, Address pos, Address neg, Address pos_index, Address neg_index,
                 int threads, int isa, int screen) {
  using namespace infodisent;
  with_map(
      dtype, x, images, pixels, channels, image_stride, pixel_stride, channel_stride,
      [&](const auto& map) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(map.data)>>;
        float *p = at<float>(pos), *n = at<float>(neg);
        int32_t *p_index = at<int32_t>(pos_index), *n_index = at<int32_t>(neg_index);
        if constexpr (std::is_same_v<T, BFloat16>)
          if (u_dtype == 1)
            return rotate_pool_pairs(map, at<const BFloat16>(u), p, n, p_index, n_index, threads);
        if constexpr (std::is_same_v<T, double>)
          throw std::invalid_argument("rotate_pool: float64 is for the library product");
        else if (u_dtype == 0)
          rotate_pool_float(map, at<const float>(u), p, n, p_index, n_index, threads, isa, screen);
        else
          throw std::invalid_argument("rotate_pool: U must be float32");
      });
}

// similarities: one or two codes of infodisent::Similarity; values and indices as many addresses.
void similarity_pool(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
                     int64_t image_stride, int64_t pixel_stride, int64_t channel_stride,
                     Address prototypes, int64_t count, Address valid,
                     const std::vector<int>& similarities, const std::vector<Address>& values,
                     const std::vector<Address>& indices, int threads, int isa, int screen) {
  using namespace infodisent;
  const size_t views = similarities.size();
  if (views < 1 || views > 2 || values.size() != views || indices.size() != views)
    throw std::invalid_argument("similarity_pool: one or two similarities");
  Matches matches{};
  matches.views = static_cast<int>(views);
  for (size_t v = 0; v < views; ++v) {
    if (similarities[v] < 0 || similarities[v] > 2)
      throw std::invalid_argument("similarity_pool: unknown similarity");
    matches.similarity[v] = static_cast<Similarity>(similarities[v]);
    matches.value[v] = at<float>(values[v]);
    matches.index[v] = at<int32_t>(indices[v]);
  }
  with_map(dtype, x, images, pixels, channels, image_stride, pixel_stride, channel_stride,
           [&](const auto& map) {
             using T = std::remove_const_t<std::remove_pointer_t<decltype(map.data)>>;
             if constexpr (std::is_same_v<T, double>)
               throw std::invalid_argument("similarity_pool: float64 is for the library product");
             else
               infodisent::similarity_pool(map, at<const float>(prototypes), count,
                                           at<const uint8_t>(valid), matches, threads, isa, screen);
           });
}

void rows(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
          int64_t image_stride, int64_t pixel_stride, int64_t channel_stride, Address out,
          int threads) {
  with_map(
      dtype, x, images, pixels, channels, image_stride, pixel_stride, channel_stride,
      [&](const auto& map) { infodisent::rows(map, at<WideOf<decltype(map)>>(out), threads); });
}

// `grads` and `indices`: of one side or two.
template <typename A>
infodisent::Winners<A> winners_of(int64_t count, const std::vector<Address>& grads,
                                  const std::vector<Address>& indices) {
  if (grads.empty() || grads.size() > 2 || indices.size() != grads.size())
    throw std::invalid_argument("one or two sides of winners");
  infodisent::Winners<A> winners{};
  winners.count = count;
  for (size_t side = 0; side < grads.size(); ++side) {
    winners.grad[side] = at<const A>(grads[side]);
    winners.index[side] = at<const int32_t>(indices[side]);
  }
  return winners;
}

void grad_u(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
            int64_t image_stride, int64_t pixel_stride, int64_t count,
            const std::vector<Address>& grads, const std::vector<Address>& indices, Address base,
            Address du, bool accumulate, int threads) {
  with_map(dtype, x, images, pixels, channels, image_stride, pixel_stride, 1, [&](const auto& map) {
    using A = WideOf<decltype(map)>;
    infodisent::grad_u(map, winners_of<A>(count, grads, indices), at<const A>(base), at<A>(du),
                       accumulate, threads);
  });
}

void grad_x(Address u, bool wide, int64_t images, int64_t pixels, int64_t channels, int64_t count,
            const std::vector<Address>& grads, const std::vector<Address>& indices, Address x,
            Address dx, bool accumulate, int threads) {
  py::gil_scoped_release free;
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    infodisent::grad_x(at<const A>(u), winners_of<A>(count, grads, indices), at<const A>(x),
                       at<A>(dx), accumulate, images, pixels, channels, threads);
  };
  wide ? run(0.0) : run(0.0f);
}

using Strides = std::vector<int64_t>;  // of image, pixel and channel

// bias: in the wide type, 0 for none; valid: bytes, 0 for all; top and sum: [n, P].
void softmax_pool(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
                  int64_t image_stride, int64_t pixel_stride, int64_t channel_stride, Address bias,
                  double temperature, Address valid, Address value, Address index, Address top,
                  Address sum, int threads) {
  with_map(
      dtype, x, images, pixels, channels, image_stride, pixel_stride, channel_stride,
      [&](const auto& map) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(map.data)>>;
        using A = WideOf<decltype(map)>;
        infodisent::softmax_pool<T>(
            {map, at<const A>(bias), static_cast<A>(1 / temperature), at<const uint8_t>(valid)},
            at<A>(value), at<int32_t>(index), at<A>(top), at<A>(sum), threads);
      });
}

void softmax_pool_backward(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
                           int64_t image_stride, int64_t pixel_stride, int64_t channel_stride,
                           Address bias, double temperature, Address grad, Address value,
                           Address index, Address top, Address sum, Address dx,
                           const Strides& strides, bool add, int threads) {
  with_map(dtype, x, images, pixels, channels, image_stride, pixel_stride, channel_stride,
           [&](const auto& map) {
             using T = std::remove_const_t<std::remove_pointer_t<decltype(map.data)>>;
             using A = WideOf<decltype(map)>;
             infodisent::softmax_pool_backward<T>(
                 {map, at<const A>(bias), static_cast<A>(1 / temperature), nullptr},
                 at<const A>(grad), at<const A>(value), at<const int32_t>(index), at<const A>(top),
                 at<const A>(sum), {at<A>(dx), strides.at(0), strides.at(1), strides.at(2)}, add,
                 threads);
           });
}

// statistics: [6, n, P], in the order of infodisent::Alignment.
template <typename A>
infodisent::Alignment<A> alignment(Address statistics, int64_t size) {
  A* s = at<A>(statistics);
  return {s, s + size, s + 2 * size, s + 3 * size, s + 4 * size, s + 5 * size};
}

void softmax_alignment(Address a, int dtype, int64_t images, int64_t pixels, int64_t channels,
                       int64_t image_stride, int64_t pixel_stride, int64_t channel_stride,
                       Address b, const Strides& b_strides, Address loss, Address statistics,
                       int threads) {
  with_map(dtype, a, images, pixels, channels, image_stride, pixel_stride, channel_stride,
           [&](const auto& map) {
             using T = std::remove_const_t<std::remove_pointer_t<decltype(map.data)>>;
             using A = WideOf<decltype(map)>;
             infodisent::softmax_alignment<T>(map,
                                              {at<const T>(b), images, pixels, channels,
                                               b_strides.at(0), b_strides.at(1), b_strides.at(2)},
                                              at<A>(loss),
                                              alignment<A>(statistics, images * pixels), threads);
           });
}

// da, db: 0 for what is not asked for.
void softmax_alignment_backward(Address a, int dtype, int64_t images, int64_t pixels,
                                int64_t channels, int64_t image_stride, int64_t pixel_stride,
                                int64_t channel_stride, Address b, const Strides& b_strides,
                                Address grad, Address statistics, Address da,
                                const Strides& da_strides, Address db, const Strides& db_strides,
                                int threads) {
  with_map(dtype, a, images, pixels, channels, image_stride, pixel_stride, channel_stride,
           [&](const auto& map) {
             using T = std::remove_const_t<std::remove_pointer_t<decltype(map.data)>>;
             using A = WideOf<decltype(map)>;
             infodisent::softmax_alignment_backward<T>(
                 map,
                 {at<const T>(b), images, pixels, channels, b_strides.at(0), b_strides.at(1),
                  b_strides.at(2)},
                 at<const A>(grad), alignment<const A>(statistics, images * pixels),
                 {at<A>(da), da_strides.at(0), da_strides.at(1), da_strides.at(2)},
                 {at<A>(db), db_strides.at(0), db_strides.at(1), db_strides.at(2)}, threads);
           });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("dispatch") = INFODISENT_DISPATCH;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("combine", &combine_any, py::arg("inputs"), py::arg("outputs"), py::arg("coefficient"),
        py::arg("parity"), py::arg("n"), py::arg("wide"), py::arg("share"), py::arg("threads"));
  m.def("mirror", &mirror, py::arg("x"), py::arg("n"), py::arg("sign"), py::arg("wide"),
        py::arg("threads"));
  m.def("matrix_product", &matrix_product);
  m.def("norms", &norms, py::arg("x"), py::arg("n"), py::arg("wide"), py::arg("threads"));
  m.def("mx_pool", &mx_pool);
  m.def("rotate_pool", &rotate_pool);
  m.attr("pairs") = infodisent::has_pairs();
  m.attr("tiles") = infodisent::tiles();
  m.def("screen", [](int isa) -> std::string {
    const auto* kernel = infodisent::screen_kernel(static_cast<infodisent::ScreenIsa>(isa));
    return kernel == nullptr ? "" : kernel->name;
  });
  m.attr("worthwhile") = infodisent::kWorthwhile;
  m.def("screen_gain", &infodisent::screen_gain, py::call_guard<py::gil_scoped_release>());
  m.def("rows", &rows);
  m.def("grad_u", &grad_u);
  m.def("grad_x", &grad_x);
  m.def("similarity_pool", &similarity_pool);
  m.def("softmax_pool", &softmax_pool);
  m.def("softmax_pool_backward", &softmax_pool_backward);
  m.def("prefer_huge_pages",
        [](Address x, int64_t bytes) { infodisent::prefer_huge_pages(at<char>(x), bytes); });
  m.def("softmax_alignment", &softmax_alignment);
  m.def("softmax_alignment_backward", &softmax_alignment_backward);
}
