// The module infodisent._C. It knows nothing of torch: pointers are integers, as
// tensor.data_ptr() gives them; infodisent/_native.py checks shapes, dtypes and strides first.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "rotation.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

template <typename T>
void combine(const std::vector<Address>& in, const std::vector<Address>& out,
             const std::vector<double>& coefficient, const std::vector<int>& parity, int64_t n,
             int threads) {
  std::vector<const T*> sources;
  std::vector<T*> targets;
  for (Address a : in) sources.push_back(reinterpret_cast<const T*>(a));
  for (Address a : out) targets.push_back(reinterpret_cast<T*>(a));
  py::gil_scoped_release free;
  infodisent::combine<T>(sources.data(), static_cast<int>(in.size()), targets.data(),
                         static_cast<int>(out.size()), coefficient.data(), parity.data(), n,
                         threads);
}

void combine_any(const std::vector<Address>& in, const std::vector<Address>& out,
                 const std::vector<double>& coefficient, const std::vector<int>& parity,
                 int64_t n, bool wide, int threads) {
  if (coefficient.size() != in.size() * out.size() || parity.size() != out.size() || n < 1)
    throw std::invalid_argument("combine: sizes of the arguments do not match");
  (wide ? combine<double> : combine<float>)(in, out, coefficient, parity, n, threads);
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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("dispatch") = INFODISENT_DISPATCH;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("combine", &combine_any, py::arg("inputs"), py::arg("outputs"), py::arg("coefficient"),
        py::arg("parity"), py::arg("n"), py::arg("wide"), py::arg("threads"));
  m.def("mirror", &mirror, py::arg("x"), py::arg("n"), py::arg("sign"), py::arg("wide"),
        py::arg("threads"));
  m.def("norms", &norms, py::arg("x"), py::arg("n"), py::arg("wide"), py::arg("threads"));
}
