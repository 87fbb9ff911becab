// The module: each kernel with the tensors it takes, checked (tensor_argument.h), and its numbers.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels/gaussian.h"
#include "kernels/ksg.h"
#include "kernels/rfm.h"
#include "kernels/steer.h"
#include "slots/slot.h"
#include "slots/steer_arguments.h"
#include "slots/tensor_argument.h"

namespace py = pybind11;

namespace expertsteer {
namespace {

using Tensor = py::handle;  // the caller holds it for the length of the call

constexpr std::int64_t kAny = kAnySize;

void steer_on_cpu(Tensor hidden, Tensor table, Tensor rows, Tensor strengths, Tensor mask,
                  int operation, Tensor gates, Tensor thresholds, Tensor inverse_norms,
                  int threads) {
  const SteerTensors tensors{table.ptr(),     inverse_norms.ptr(), rows.ptr(),
                             strengths.ptr(), gates.ptr(),         thresholds.ptr()};
  const Steer args = steer_arguments(hidden.ptr(), tensors, mask.ptr(), operation, threads, kDLCPU);
  py::gil_scoped_release release;
  steer_cpu(args);
}

bool whiten(Tensor codes, Tensor whitened, int threads) {
  const TensorArgument from = checked("codes", codes.ptr(), kind<double>(), {kAny, kAny, kAny});
  const std::int64_t layers = from.sizes[0], n = from.sizes[1], r = from.sizes[2];
  const TensorArgument to = checked("whitened", whitened.ptr(), kind<float>(), {layers, r, n});
  py::gil_scoped_release release;
  return whiten_cpu(Whiten{from.at<const double>(), layers, n, r, to.at<float>()}, threads);
}

void log_determinants(Tensor product, Tensor nats, Tensor smallest, int threads) {
  const TensorArgument out = checked("nats", nats.ptr(), kind<double>(), {kAny, kAny});
  const std::int64_t rows = out.sizes[0], columns = out.sizes[1];
  const TensorArgument least = checked("smallest", smallest.ptr(), kind<float>(), {rows, columns});
  const TensorArgument blocks = checked("product", product.ptr(), kind<float>(), {kAny, kAny});
  if (!rows || !columns || blocks.sizes[0] % columns || blocks.sizes[1] % rows) {
    refuse(blocks, "blocks [" + std::to_string(columns) + " s, " + std::to_string(rows) + " r]");
  }
  const LogDeterminants args{blocks.at<const float>(),
                             rows,
                             columns,
                             blocks.sizes[1] / rows,
                             blocks.sizes[0] / columns,
                             out.at<double>(),
                             least.at<float>()};
  py::gil_scoped_release release;
  log_determinants_cpu(args, threads);
}

void max_norm_distances(Tensor codes, Tensor out, std::int64_t first, int threads) {
  const TensorArgument from = checked("codes", codes.ptr(), kind<float>(), {kAny, kAny, kAny});
  const std::int64_t layers = from.sizes[0], n = from.sizes[2];
  const TensorArgument to = checked("out", out.ptr(), kind<float>(), {layers, kAny, n});
  const std::int64_t rows = to.sizes[1];
  if (first < 0 || first + rows > n) {
    throw py::value_error("first must leave room for " + std::to_string(rows) + " rows of " +
                          std::to_string(n) + ", came " + std::to_string(first));
  }
  const MaxNormDistances args{
      from.at<const float>(), to.at<float>(), layers, from.sizes[1], n, first, rows};
  py::gil_scoped_release release;
  max_norm_distances_cpu(args, threads);
}

void ksg_counts(Tensor x, Tensor y, Tensor n_x, Tensor n_y, int k, int variant, int threads) {
  const TensorArgument left = checked("x", x.ptr(), kind<float>(), {kAny, kAny, kAny});
  const std::int64_t rows = left.sizes[1], n = left.sizes[2], layers_x = left.sizes[0];
  const TensorArgument right = checked("y", y.ptr(), kind<float>(), {kAny, rows, n});
  const std::int64_t layers_y = right.sizes[0];
  const auto counts = [&](const char* name, Tensor tensor) {
    return checked(name, tensor.ptr(), kind<std::int32_t>(), {layers_x, layers_y, rows})
        .at<std::int32_t>();
  };
  if (k < 1 || k >= n) {
    throw py::value_error("k must be from 1 to " + std::to_string(n - 1) + ", came " +
                          std::to_string(k));
  }
  if (variant != 1 && variant != 2) throw py::value_error("variant must be 1 or 2");
  const KsgCounts args{left.at<const float>(),
                       right.at<const float>(),
                       counts("n_x", n_x),
                       counts("n_y", n_y),
                       layers_x,
                       layers_y,
                       rows,
                       n,
                       k,
                       variant};
  py::gil_scoped_release release;
  ksg_counts_cpu(args, threads);
}

template <typename T>
T* elements(const char* name, Tensor tensor, std::initializer_list<std::int64_t> sizes) {
  return checked(name, tensor.ptr(), kind<T>(), sizes).template at<T>();
}

// Calls `call` with the elements of a matrix [n, n], in single or double precision, and n.
template <typename Call>
auto with_matrix(const char* name, Tensor matrix, Call call) {
  const TensorArgument argument = read_tensor(name, matrix.ptr());
  const std::int64_t n = argument.dimensions ? argument.sizes[0] : 0;
  const DLDataType type = argument.kind.dtype;
  if (type == kind<float>().dtype) return call(elements<float>(name, matrix, {n, n}), n);
  if (type == kind<double>().dtype) return call(elements<double>(name, matrix, {n, n}), n);
  refuse(argument, "a contiguous float32 or float64 tensor [n, n] on cpu");
}

double median_distance_of(Tensor gram, int threads) {
  return with_matrix("gram", gram, [&](auto* matrix, std::int64_t n) -> double {
    if (n < 2) throw py::value_error("gram must hold at least 2 rows, came " + std::to_string(n));
    py::gil_scoped_release release;
    return median_distance(matrix, n, threads);
  });
}

void laplace_of(Tensor gram, double bandwidth, double eps, Tensor kernel, Tensor weights,
                int threads) {
  with_matrix("gram", gram, [&](auto* matrix, std::int64_t n) {
    using T = std::remove_pointer_t<decltype(matrix)>;
    T* out = elements<T>("kernel", kernel, {n, n});
    T* slopes = checked_or_none("weights", weights.ptr(), kind<T>(), {n, n}).template at<T>();
    py::gil_scoped_release release;
    laplace(matrix, n, static_cast<T>(bandwidth), static_cast<T>(eps), out, slopes, threads);
  });
}

void gradient_transform_of(Tensor weights, Tensor alpha, Tensor transform, Tensor sums,
                           int threads) {
  with_matrix("weights", weights, [&](auto* matrix, std::int64_t n) {
    using T = std::remove_pointer_t<decltype(matrix)>;
    const T* factors = elements<T>("alpha", alpha, {n});
    T* out = elements<T>("transform", transform, {n, n});
    T* totals = elements<T>("sums", sums, {n});
    py::gil_scoped_release release;
    gradient_transform(matrix, factors, n, out, totals, threads);
  });
}

void mirror_lower_of(Tensor matrix, int threads) {
  with_matrix("matrix", matrix, [&](auto* both, std::int64_t n) {
    py::gil_scoped_release release;
    mirror_lower(both, n, threads);
  });
}

#ifdef EXPERTSTEER_WITH_CUDA
void steer_on_cuda(Tensor hidden, Tensor table, Tensor rows, Tensor strengths, Tensor mask,
                   int operation, Tensor gates, Tensor thresholds, Tensor inverse_norms,
                   std::uintptr_t stream) {
  const SteerTensors tensors{table.ptr(),     inverse_norms.ptr(), rows.ptr(),
                             strengths.ptr(), gates.ptr(),         thresholds.ptr()};
  const Steer args = steer_arguments(hidden.ptr(), tensors, mask.ptr(), operation, 1, kDLCUDA);
  const char* failed = steer_cuda(args, reinterpret_cast<void*>(stream));
  if (failed) throw std::runtime_error(std::string("steer_cuda: ") + failed);
}
#endif

}  // namespace
}  // namespace expertsteer

#define EXPERTSTEER_STEER_ARGUMENTS                                                            \
  py::arg("hidden"), py::arg("table"), py::arg("rows"), py::arg("strengths"), py::arg("mask"), \
      py::arg("operation"), py::arg("gates"), py::arg("thresholds"), py::arg("inverse_norms")

PYBIND11_MODULE(_C, m) {
  using namespace expertsteer;
  m.doc() = "Compiled kernels of expertsteer; see expertsteer.ops.extension.";

  m.def("steer_cpu", &steer_on_cpu, EXPERTSTEER_STEER_ARGUMENTS, py::arg("threads"));
  m.def("whiten_cpu", &whiten, py::arg("codes"), py::arg("whitened"), py::arg("threads"));
  m.def("log_determinants_cpu", &log_determinants, py::arg("product"), py::arg("nats"),
        py::arg("smallest"), py::arg("threads"));
  m.def("max_norm_distances_cpu", &max_norm_distances, py::arg("codes"), py::arg("out"),
        py::arg("first"), py::arg("threads"));
  m.def("ksg_counts_cpu", &ksg_counts, py::arg("x"), py::arg("y"), py::arg("n_x"), py::arg("n_y"),
        py::arg("k"), py::arg("variant"), py::arg("threads"));
  m.def("median_distance", &median_distance_of, py::arg("gram"), py::arg("threads"));
  m.def("laplace", &laplace_of, py::arg("gram"), py::arg("bandwidth"), py::arg("eps"),
        py::arg("kernel"), py::arg("weights"), py::arg("threads"));
  m.def("gradient_transform", &gradient_transform_of, py::arg("weights"), py::arg("alpha"),
        py::arg("transform"), py::arg("sums"), py::arg("threads"));
  m.def("mirror_lower", &mirror_lower_of, py::arg("matrix"), py::arg("threads"));

  if (!define_slots(m.ptr())) throw py::error_already_set();

#ifdef EXPERTSTEER_WITH_CUDA
  m.attr("with_cuda") = true;
  m.def("steer_cuda", &steer_on_cuda, EXPERTSTEER_STEER_ARGUMENTS, py::arg("stream"));
#else
  m.attr("with_cuda") = false;
#endif
}
