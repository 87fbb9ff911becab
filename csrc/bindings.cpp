// The only file that knows Python. Arguments are integers (pointers, sizes, strides) that
// expertsteer/ops/native.py has validated.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "ksg.h"
#include "steer.h"

namespace py = pybind11;
using expertsteer::DType;
using expertsteer::SteerAdd;

namespace {

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
#else
  m.attr("with_cuda") = false;
#endif
}
