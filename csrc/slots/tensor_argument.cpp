#include "tensor_argument.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <exception>
#include <string>

namespace py = pybind11;

namespace expertsteer {
namespace {

struct NamedType {
  const char* name;  // as torch spells it
  DLDataType dtype;
};

constexpr std::array<NamedType, 10> kTypes{{{"float32", {kDLFloat, 32, 1}},
                                            {"float64", {kDLFloat, 64, 1}},
                                            {"float16", {kDLFloat, 16, 1}},
                                            {"bfloat16", {kDLBfloat, 16, 1}},
                                            {"bool", {kDLBool, 8, 1}},
                                            {"int32", {kDLInt, 32, 1}},
                                            {"int64", {kDLInt, 64, 1}},
                                            {"int16", {kDLInt, 16, 1}},
                                            {"int8", {kDLInt, 8, 1}},
                                            {"uint8", {kDLUInt, 8, 1}}}};
constexpr DLDataType kOther = {0xff, 0, 0};  // no kernel takes it

std::string name_of(DLDataType dtype) {
  for (const NamedType& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  return "another type";
}

std::string name_of(DLDevice device) {
  if (device.type == kDLCPU) return "cpu";
  if (device.type == kDLCUDA) return "cuda:" + std::to_string(device.id);
  return "another device";
}

// As Python writes a list; "*" for any size.
std::string listed(const std::int64_t* values, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) {
    if (i) text += ", ";
    text += values[i] == kAnySize ? "*" : std::to_string(values[i]);
  }
  return text + "]";
}

std::string described(const TensorArgument& argument) {
  return name_of(argument.kind.dtype) + " " + listed(argument.sizes, argument.dimensions) +
         " with strides " + listed(argument.strides, argument.dimensions) + " on " +
         name_of(argument.kind.device);
}

[[noreturn]] void refuse_text(const char* name, const std::string& expected,
                              const std::string& came) {
  throw py::value_error(std::string(name) + " must be " + expected + ", came " + came +
                        "; convert it, or allocate it with this type and layout");
}

void set_dimensions(TensorArgument* argument, std::int64_t count) {
  if (count < 0 || count > TensorArgument::kMostDimensions) {
    refuse_text(
        argument->name,
        "a tensor of at most " + std::to_string(TensorArgument::kMostDimensions) + " dimensions",
        std::to_string(count) + " of them");
  }
  argument->dimensions = static_cast<int>(count);
}

// Through DLPack's exchange table: a plain tensor of a torch that has it.
bool read_view(PyObject* tensor, TensorArgument* argument) {
  DLTensor view;
  if (!is_exact_tensor(tensor) || !view_of(tensor, &view) || !view.strides) return false;
  set_dimensions(argument, view.ndim);
  std::copy_n(view.shape, view.ndim, argument->sizes);
  std::copy_n(view.strides, view.ndim, argument->strides);
  argument->kind = Kind{view.dtype, view.device};
  argument->address = static_cast<char*>(view.data) + view.byte_offset;
  return true;
}

// Through the tensor's attributes: parameters, and every torch before 2.10.
void read_attributes(py::handle tensor, TensorArgument* argument) {
  for (const char* name : {"data_ptr", "stride", "shape", "dtype", "device"}) {
    if (!py::hasattr(tensor, name)) {
      refuse_text(argument->name, "a torch tensor", Py_TYPE(tensor.ptr())->tp_name);
    }
  }
  const py::tuple sizes(tensor.attr("shape")), strides(tensor.attr("stride")());
  set_dimensions(argument, static_cast<std::int64_t>(sizes.size()));
  for (int i = 0; i < argument->dimensions; ++i) {
    argument->sizes[i] = sizes[i].cast<std::int64_t>();
    argument->strides[i] = strides[i].cast<std::int64_t>();
  }
  const auto dtype = py::str(tensor.attr("dtype")).cast<std::string>();
  argument->kind.dtype = kOther;
  for (const NamedType& type : kTypes) {
    if (dtype == std::string("torch.") + type.name) argument->kind.dtype = type.dtype;
  }
  const py::object device = tensor.attr("device"), index = device.attr("index");
  const auto where = device.attr("type").cast<std::string>();
  argument->kind.device.type = where == "cpu" ? kDLCPU : where == "cuda" ? kDLCUDA : 0;
  argument->kind.device.id = where == "cpu" || index.is_none() ? 0 : index.cast<std::int32_t>();
  argument->address = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
}

bool has_sizes(const TensorArgument& argument, std::initializer_list<std::int64_t> sizes) {
  return argument.dimensions == static_cast<int>(sizes.size()) &&
         std::equal(
             sizes.begin(), sizes.end(), argument.sizes,
             [](std::int64_t want, std::int64_t is) { return want == kAnySize || want == is; });
}

// Strides of dimensions with one entry, and of tensors without any, are never used.
bool has_layout(const TensorArgument& argument, Layout layout) {
  const std::int64_t* sizes = argument.sizes;
  if (layout == Layout::kStrided || std::count(sizes, sizes + argument.dimensions, 0)) return true;
  const int first = layout == Layout::kRows ? argument.dimensions - 1 : 0;
  std::int64_t step = 1;
  for (int i = argument.dimensions - 1; i >= std::max(first, 0); --i) {
    if (sizes[i] != 1 && argument.strides[i] != step) return false;
    step *= sizes[i];
  }
  return true;
}

const char* name_of(Layout layout) {
  if (layout == Layout::kContiguous) return "contiguous ";
  return layout == Layout::kRows ? "row-contiguous " : "";
}

}  // namespace

bool operator==(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

bool operator==(DLDevice a, DLDevice b) {
  return a.type == b.type && (a.type == kDLCPU || a.id == b.id);
}

template <>
Kind kind<float>(DLDevice device) {
  return {{kDLFloat, 32, 1}, device};
}
template <>
Kind kind<double>(DLDevice device) {
  return {{kDLFloat, 64, 1}, device};
}
template <>
Kind kind<std::int32_t>(DLDevice device) {
  return {{kDLInt, 32, 1}, device};
}
template <>
Kind kind<bool>(DLDevice device) {
  return {{kDLBool, 8, 1}, device};
}

void set_python_error() {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

TensorArgument read_tensor(const char* name, PyObject* tensor) {
  TensorArgument argument{};
  argument.name = name;
  argument.given = true;
  if (!read_view(tensor, &argument)) read_attributes(tensor, &argument);
  return argument;
}

TensorArgument checked(const char* name, PyObject* tensor, Kind kind,
                       std::initializer_list<std::int64_t> sizes, Layout layout) {
  const TensorArgument argument = read_tensor(name, tensor);
  if (!(argument.kind.dtype == kind.dtype) || !(argument.kind.device == kind.device) ||
      !has_sizes(argument, sizes) || !has_layout(argument, layout)) {
    const std::string shape = listed(sizes.begin(), static_cast<int>(sizes.size()));
    refuse(argument, "a " + std::string(name_of(layout)) + name_of(kind.dtype) + " tensor " +
                         shape + " on " + name_of(kind.device));
  }
  return argument;
}

TensorArgument checked_or_none(const char* name, PyObject* tensor, Kind kind,
                               std::initializer_list<std::int64_t> sizes, Layout layout) {
  if (tensor == Py_None) return TensorArgument{name, false, nullptr, kind, 0, {}, {}};
  return checked(name, tensor, kind, sizes, layout);
}

void refuse(const TensorArgument& argument, const std::string& expected) {
  refuse_text(argument.name, expected, described(argument));
}

DType steered_type(const TensorArgument& hidden) {
  for (DType type : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
    if (dlpack_type(type) == hidden.kind.dtype) return type;
  }
  refuse(hidden, "of type float32, float64, float16 or bfloat16");
}

Kind wide_kind(DType dtype, DLDevice device) {
  return dtype == DType::kFloat64 ? kind<double>(device) : kind<float>(device);
}

}  // namespace expertsteer
