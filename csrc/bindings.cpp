// The only file that knows Python. Arguments are integers (pointers, sizes, strides) that
// expertsteer/ops/native.py has validated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "gaussian.h"
#include "ksg.h"
#include "rfm.h"
#include "slot.h"
#include "steer.h"

namespace py = pybind11;
using expertsteer::DType;
using expertsteer::Steer;
using expertsteer::SteerAdd;
using expertsteer::SteerOperation;

namespace {

template <typename T>
T* at(std::uintptr_t pointer) {
  return reinterpret_cast<T*>(pointer);
}

SteerAdd make_steer_add(std::uintptr_t hidden, int dtype, std::int64_t batch, std::int64_t tokens,
                        std::int64_t width, std::int64_t batch_stride, std::int64_t token_stride,
                        std::uintptr_t delta, std::uintptr_t mask, std::int64_t mask_batch_stride,
                        std::int64_t mask_token_stride) {
  if (dtype < 0 || dtype > 3) throw std::invalid_argument("dtype must be 0, 1, 2 or 3");
  return SteerAdd{reinterpret_cast<void*>(hidden),
                  static_cast<DType>(dtype),
                  batch,
                  tokens,
                  width,
                  batch_stride,
                  token_stride,
                  reinterpret_cast<const void*>(delta),
                  reinterpret_cast<const std::uint8_t*>(mask),
                  mask_batch_stride,
                  mask_token_stride};
}

using Sizes = std::array<std::int64_t, 3>;
using Strided =
    std::pair<std::uintptr_t, std::int64_t>;  // a pointer, and the stride between sequences

Steer make_steer(std::uintptr_t hidden, int dtype, Sizes shape, Sizes strides, int operation,
                 std::int64_t vectors, Strided table, std::uintptr_t inverse_norms, Strided rows,
                 Strided strengths, std::uintptr_t mask, std::array<std::int64_t, 2> mask_strides,
                 Strided gates, Strided thresholds, int threads) {
  if (dtype < 0 || dtype > 3) throw std::invalid_argument("dtype must be 0, 1, 2 or 3");
  if (operation < 0 || operation > 3) throw std::invalid_argument("operation must be 0, 1, 2 or 3");
  return Steer{at<void>(hidden),
               static_cast<DType>(dtype),
               shape[0],
               shape[1],
               shape[2],
               strides[0],
               strides[1],
               strides[2],
               static_cast<SteerOperation>(operation),
               vectors,
               at<const void>(table.first),
               table.second,
               at<const void>(inverse_norms),
               at<const std::int32_t>(rows.first),
               rows.second,
               at<const void>(strengths.first),
               strengths.second,
               at<const std::uint8_t>(mask),
               mask_strides[0],
               mask_strides[1],
               at<const std::int32_t>(gates.first),
               gates.second,
               at<const void>(thresholds.first),
               thresholds.second,
               threads};
}

// The passes of rfm.h in one type; `suffix` is the name torch gives it.
template <typename T>
void define_rfm(py::module_& m, const std::string& suffix) {
  using Pointer = std::uintptr_t;
  using Size = std::int64_t;
  const py::call_guard<py::gil_scoped_release> released;
  m.def(("median_distance_" + suffix).c_str(),
        [](Pointer gram, Size n, int threads) {
          return expertsteer::median_distance(at<const T>(gram), n, threads);
        },
        py::arg("gram"), py::arg("n"), py::arg("threads"), released);
  m.def(("laplace_" + suffix).c_str(),
        [](Pointer gram, Size n, T bandwidth, T eps, Pointer kernel, Pointer weights, int threads) {
          expertsteer::laplace(at<const T>(gram), n, bandwidth, eps, at<T>(kernel), at<T>(weights),
                               threads);
        },
        py::arg("gram"), py::arg("n"), py::arg("bandwidth"), py::arg("eps"), py::arg("kernel"),
        py::arg("weights"), py::arg("threads"), released);
  m.def(("gradient_transform_" + suffix).c_str(),
        [](Pointer weights, Pointer alpha, Size n, Pointer transform, Pointer sums, int threads) {
          expertsteer::gradient_transform(at<const T>(weights), at<const T>(alpha), n,
                                          at<T>(transform), at<T>(sums), threads);
        },
        py::arg("weights"), py::arg("alpha"), py::arg("n"), py::arg("transform"), py::arg("sums"),
        py::arg("threads"), released);
  m.def(("mirror_lower_" + suffix).c_str(),
        [](Pointer matrix, Size n, int threads) {
          expertsteer::mirror_lower(at<T>(matrix), n, threads);
        },
        py::arg("matrix"), py::arg("n"), py::arg("threads"), released);
}

}  // namespace

#define EXPERTSTEER_STEER_ADD_ARGS                                                            \
  py::arg("hidden"), py::arg("dtype"), py::arg("batch"), py::arg("tokens"), py::arg("width"), \
      py::arg("batch_stride"), py::arg("token_stride"), py::arg("delta"), py::arg("mask"),    \
      py::arg("mask_batch_stride"), py::arg("mask_token_stride")

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of expertsteer; see expertsteer.ops.native.";

  m.def(
      "steer_add_cpu",
      [](std::uintptr_t hidden, int dtype, std::int64_t batch, std::int64_t tokens,
         std::int64_t width, std::int64_t batch_stride, std::int64_t token_stride,
         std::uintptr_t delta, std::uintptr_t mask, std::int64_t mask_batch_stride,
         std::int64_t mask_token_stride) {
        const SteerAdd args =
            make_steer_add(hidden, dtype, batch, tokens, width, batch_stride, token_stride, delta,
                           mask, mask_batch_stride, mask_token_stride);
        py::gil_scoped_release release;
        expertsteer::steer_add_cpu(args);
      },
      EXPERTSTEER_STEER_ADD_ARGS);

  py::class_<Steer>(m, "Steer")
      .def(py::init(&make_steer), py::arg("hidden"), py::arg("dtype"), py::arg("shape"),
           py::arg("strides"), py::arg("operation"), py::arg("vectors"), py::arg("table"),
           py::arg("inverse_norms"), py::arg("rows"), py::arg("strengths"), py::arg("mask"),
           py::arg("mask_strides"), py::arg("gates"), py::arg("thresholds"), py::arg("threads"));
  m.def("steer_cpu", &expertsteer::steer_cpu, py::arg("steer"),
        py::call_guard<py::gil_scoped_release>());

  m.def(
      "whiten_cpu",
      [](std::uintptr_t codes, std::int64_t layers, std::int64_t n, std::int64_t r,
         std::uintptr_t whitened, int threads) {
        const expertsteer::Whiten args{at<const double>(codes), layers, n, r, at<float>(whitened)};
        py::gil_scoped_release release;
        return expertsteer::whiten_cpu(args, threads);
      },
      py::arg("codes"), py::arg("layers"), py::arg("n"), py::arg("r"), py::arg("whitened"),
      py::arg("threads"));

  m.def(
      "log_determinants_cpu",
      [](std::uintptr_t product, std::int64_t rows, std::int64_t columns, std::int64_t r,
         std::int64_t s, std::uintptr_t nats, std::uintptr_t smallest, int threads) {
        const expertsteer::LogDeterminants args{
            at<const float>(product), rows, columns, r, s, at<double>(nats), at<float>(smallest)};
        py::gil_scoped_release release;
        expertsteer::log_determinants_cpu(args, threads);
      },
      py::arg("product"), py::arg("rows"), py::arg("columns"), py::arg("r"), py::arg("s"),
      py::arg("nats"), py::arg("smallest"), py::arg("threads"));

  define_rfm<float>(m, "float32");
  define_rfm<double>(m, "float64");

  m.def(
      "max_norm_distances_cpu",
      [](std::uintptr_t codes, std::uintptr_t out, std::int64_t layers, std::int64_t components,
         std::int64_t n, std::int64_t first, std::int64_t rows, int threads) {
        const expertsteer::MaxNormDistances args{reinterpret_cast<const float*>(codes),
                                                 reinterpret_cast<float*>(out),
                                                 layers,
                                                 components,
                                                 n,
                                                 first,
                                                 rows};
        py::gil_scoped_release release;
        expertsteer::max_norm_distances_cpu(args, threads);
      },
      py::arg("codes"), py::arg("out"), py::arg("layers"), py::arg("components"), py::arg("n"),
      py::arg("first"), py::arg("rows"), py::arg("threads"));

  m.def(
      "ksg_counts_cpu",
      [](std::uintptr_t x, std::uintptr_t y, std::uintptr_t n_x, std::uintptr_t n_y,
         std::int64_t layers_x, std::int64_t layers_y, std::int64_t rows, std::int64_t n, int k,
         int variant, int threads) {
        const expertsteer::KsgCounts args{reinterpret_cast<const float*>(x),
                                          reinterpret_cast<const float*>(y),
                                          reinterpret_cast<std::int32_t*>(n_x),
                                          reinterpret_cast<std::int32_t*>(n_y),
                                          layers_x,
                                          layers_y,
                                          rows,
                                          n,
                                          k,
                                          variant};
        py::gil_scoped_release release;
        expertsteer::ksg_counts_cpu(args, threads);
      },
      py::arg("x"), py::arg("y"), py::arg("n_x"), py::arg("n_y"), py::arg("layers_x"),
      py::arg("layers_y"), py::arg("rows"), py::arg("n"), py::arg("k"), py::arg("variant"),
      py::arg("threads"));

  if (!expertsteer::define_slots(m.ptr())) throw py::error_already_set();

#ifdef EXPERTSTEER_WITH_CUDA
  m.attr("with_cuda") = true;
  m.def(
      "steer_add_cuda",
      [](std::uintptr_t hidden, int dtype, std::int64_t batch, std::int64_t tokens,
         std::int64_t width, std::int64_t batch_stride, std::int64_t token_stride,
         std::uintptr_t delta, std::uintptr_t mask, std::int64_t mask_batch_stride,
         std::int64_t mask_token_stride, std::uintptr_t stream) {
        const SteerAdd args =
            make_steer_add(hidden, dtype, batch, tokens, width, batch_stride, token_stride, delta,
                           mask, mask_batch_stride, mask_token_stride);
        const char* error = expertsteer::steer_add_cuda(args, reinterpret_cast<void*>(stream));
        if (error) throw std::runtime_error(std::string("steer_add_cuda: ") + error);
      },
      EXPERTSTEER_STEER_ADD_ARGS, py::arg("stream"));
  m.def(
      "steer_cuda",
      [](const Steer& args, std::uintptr_t stream) {
        const char* error = expertsteer::steer_cuda(args, at<void>(stream));
        if (error) throw std::runtime_error(std::string("steer_cuda: ") + error);
      },
      py::arg("steer"), py::arg("stream"));
#else
  m.attr("with_cuda") = false;
#endif
}
