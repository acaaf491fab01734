// The module infodisent._cuda: kernels for Hopper GPUs. A module of its own, so that infodisent._C
// needs nothing of CUDA. It knows nothing of torch: pointers and streams are integers;
// infodisent/backends/cuda checks shapes, dtypes and strides first.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "address.h"
#include "channels_last.h"
#include "grad_u_cost.h"
#include "rotate_pool.h"
#include "rotate_pool_backward.h"
#include "tile_cost.h"
#include "tile_schedule.h"

namespace py = pybind11;
using infodisent::Address;
using infodisent::at;

namespace {

void check(const char* op, infodisent::sm90::Status status) {
  if (status.error == cudaSuccess) return;
  const std::string message =
      std::string(op) + ": " + status.where + ": " + cudaGetErrorString(status.error);
  if (status.error == cudaErrorInvalidValue) throw std::invalid_argument(message);
  throw std::runtime_error(message);
}

infodisent::sm90::Rows rows(Address data, Address low, int64_t images, int64_t pixels,
                            int64_t channels, int64_t image_stride, int64_t pixel_stride) {
  return {at<const void>(data), at<const void>(low), images, pixels, channels,
          image_stride,         pixel_stride};
}

void rotate_pool(Address x, Address x_low, int dtype, int64_t images, int64_t pixels,
                 int64_t channels, int64_t image_stride, int64_t pixel_stride, Address u,
                 Address u_low, Address pos, Address neg, Address pos_index, Address neg_index,
                 Address keys, int device, int tile, int cluster, bool exact, Address stream) {
  using namespace infodisent::sm90;
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("rotate_pool: unknown dtype code");
  Status status;
  {
    py::gil_scoped_release free;
    status = rotate_pool(rows(x, x_low, images, pixels, channels, image_stride, pixel_stride),
                         static_cast<Dtype>(dtype), at<const void>(u), at<const void>(u_low),
                         at<float>(pos), at<float>(neg), at<int32_t>(pos_index),
                         at<int32_t>(neg_index), at<void>(keys), {device, tile, cluster, exact},
                         reinterpret_cast<cudaStream_t>(stream));
  }
  check("rotate_pool", status);
}

// x [images, pixels, channels] and u [channels, channels] contiguous, as to_float8 makes them.
void rotate_pool_float8(Address x, Address x_scale, int64_t images, int64_t pixels,
                        int64_t channels, Address u, Address u_scale, Address pos, Address neg,
                        Address pos_index, Address neg_index, Address keys, int device, int tile,
                        int cluster, Address stream) {
  using namespace infodisent::sm90;
  Status status;
  {
    py::gil_scoped_release free;
    status = rotate_pool(rows(x, 0, images, pixels, channels, pixels * channels, channels), kFloat8,
                         at<const void>(u), nullptr, at<float>(pos), at<float>(neg),
                         at<int32_t>(pos_index), at<int32_t>(neg_index), at<void>(keys),
                         {device, tile, cluster, false}, reinterpret_cast<cudaStream_t>(stream),
                         {at<const float>(u_scale), at<const float>(x_scale)});
  }
  check("rotate_pool_float8", status);
}

void to_float8(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
               int64_t image_stride, int64_t pixel_stride, Address out, Address largest,
               Address scale, int device, Address stream) {
  using namespace infodisent::sm90;
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("to_float8: unknown dtype code");
  Status status;
  {
    py::gil_scoped_release free;
    status = to_float8(rows(x, 0, images, pixels, channels, image_stride, pixel_stride),
                       static_cast<Dtype>(dtype), at<void>(out), at<uint32_t>(largest),
                       at<float>(scale), device, reinterpret_cast<cudaStream_t>(stream));
  }
  check("to_float8", status);
}

void channels_last(Address x, int element_bytes, int64_t images, int64_t pixels, int64_t channels,
                   int64_t image_stride, int64_t channel_stride, Address out, int device,
                   Address stream) {
  infodisent::sm90::Status status;
  {
    py::gil_scoped_release free;
    status = infodisent::sm90::channels_last(
        {at<const void>(x), images, pixels, channels, image_stride, channel_stride}, element_bytes,
        at<void>(out), device, reinterpret_cast<cudaStream_t>(stream));
  }
  check("channels_last", status);
}

void split(Address x, int64_t images, int64_t pixels, int64_t channels, int64_t image_stride,
           int64_t pixel_stride, Address high, Address low, int device, Address stream) {
  infodisent::sm90::Status status;
  {
    py::gil_scoped_release free;
    status = infodisent::sm90::split(
        rows(x, 0, images, pixels, channels, image_stride, pixel_stride), at<void>(high),
        at<void>(low), device, reinterpret_cast<cudaStream_t>(stream));
  }
  check("split", status);
}

void split_rotation(Address u, Address high, Address low, int64_t channels, int device,
                    Address stream) {
  infodisent::sm90::Status status;
  {
    py::gil_scoped_release free;
    status =
        infodisent::sm90::split_rotation(at<const float>(u), at<void>(high), at<void>(low),
                                         channels, device, reinterpret_cast<cudaStream_t>(stream));
  }
  check("split_rotation", status);
}

void grad_u(Address x, int dtype, int64_t images, int64_t pixels, int64_t channels,
            int64_t image_stride, int64_t pixel_stride, Address grad_pos, Address grad_neg,
            Address pos_index, Address neg_index, Address out, Address parts, Address scales,
            int device, int cluster, int splits, bool out_half, Address stream) {
  using namespace infodisent::sm90;
  Status status;
  {
    py::gil_scoped_release free;
    status = infodisent::sm90::grad_u(
        rows(x, 0, images, pixels, channels, image_stride, pixel_stride), static_cast<Dtype>(dtype),
        at<const float>(grad_pos), at<const float>(grad_neg), at<const int32_t>(pos_index),
        at<const int32_t>(neg_index), at<void>(out), at<float>(parts), at<float>(scales),
        {device, cluster, splits, out_half}, reinterpret_cast<cudaStream_t>(stream));
  }
  check("grad_u", status);
}

// (cluster, splits) of grad_u.
py::tuple choose_grad_u(int32_t images, int32_t pixels, int32_t channels, int32_t pitch,
                        int processors) {
  using namespace infodisent;
  const backward::Plan plan = backward::choose(images, pixels, channels, pitch, processors);
  return py::make_tuple(plan.cluster, plan.splits);
}

// (blocks at a time, waves, clocks) of grad_u by the model of grad_u_cost.h.
py::tuple grad_u_cost(int32_t images, int32_t pixels, int32_t channels, int32_t pitch, int cluster,
                      int splits, int processors) {
  const auto cost =
      infodisent::backward::cost_of(images, pixels, channels, pitch, cluster, splits, processors);
  return py::make_tuple(cost.blocks, cost.waves, cost.clocks);
}

// The newest version of CUDA that the GPU driver serves, as CUDART_VERSION counts; 0 without one.
int driver() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

// (tiles, blocks at a time, waves, clocks) of a tile and a cluster by the model of tile_cost.h.
py::tuple tile_cost(int tile, int cluster, const infodisent::cost::Problem& problem,
                    int processors) {
  const auto cost = infodisent::cost::cost_of(problem, tile, cluster, processors);
  return py::make_tuple(cost.tiles, cost.blocks, cost.waves, cost.clocks);
}

// (name, columns, images, pixels) of every tile; images = 0: any number of pixels.
py::list tiles() {
  py::list shapes;
  for (const auto& tile : infodisent::kTiles)
    shapes.append(py::make_tuple(tile.name, tile.columns, tile.images, tile.pixels));
  return shapes;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("tiles") = tiles();
  m.attr("row_bytes") = infodisent::kRowBytes;
  m.attr("packed_pixels") = infodisent::kPackedPixels;
  m.attr("toolkit") = CUDART_VERSION;
  m.def("driver", &driver);
  m.def("pitch", &infodisent::pitch_of, py::arg("images"), py::arg("pixels"),
        py::arg("image_stride"), py::arg("pixel_stride"));
  using infodisent::cost::Problem;
  py::class_<Problem>(m, "Problem", py::module_local())
      .def(py::init<int32_t, int32_t, int32_t, int32_t, int32_t>(), py::arg("images"),
           py::arg("pixels"), py::arg("channels"), py::arg("pitch"), py::arg("steps"));
  m.def("choose_tile", &infodisent::cost::choose_tile, py::arg("problem"), py::arg("processors"));
  m.def("choose_cluster", &infodisent::cost::choose_cluster, py::arg("problem"), py::arg("tile"),
        py::arg("processors"));
  m.def("serves", &infodisent::serves, py::arg("tile"), py::arg("pixels"));
  m.def("has_halves", &infodisent::cost::has_halves, py::arg("tile"), py::arg("problem"));
  m.def("tile_cost", &tile_cost, py::arg("tile"), py::arg("cluster"), py::arg("problem"),
        py::arg("processors"));
  m.def("rotate_pool", &rotate_pool);
  m.def("rotate_pool_float8", &rotate_pool_float8);
  m.def("to_float8", &to_float8);
  m.def("grad_u", &grad_u);
  m.def("choose_grad_u", &choose_grad_u, py::arg("images"), py::arg("pixels"), py::arg("channels"),
        py::arg("pitch"), py::arg("processors"));
  m.def("grad_u_cost", &grad_u_cost, py::arg("images"), py::arg("pixels"), py::arg("channels"),
        py::arg("pitch"), py::arg("cluster"), py::arg("splits"), py::arg("processors"));
  m.def("channels_last", &channels_last);
  m.def("split", &split);
  m.def("split_rotation", &split_rotation);
}
