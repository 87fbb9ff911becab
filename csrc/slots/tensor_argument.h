// The tensors that kernels are given, checked once: no kernel sees a pointer that was not.
//
// A binding says what its kernel assumes of each tensor (type of the elements, device, sizes,
// layout) and gets the address; a tensor that is anything else is a ValueError that names it. Sizes
// are read from the tensors, so that none can disagree with the memory it describes.
#pragma once

#include <Python.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "dlpack_view.h"
#include "kernels/steer.h"

namespace expertsteer {

constexpr std::int64_t kAnySize = -1;

enum class Layout {
  kContiguous,  // row-major, without gaps
  kRows,        // entries along the last dimension are neighbours
  kStrided,     // any strides
};

// What kind of elements, and where they are.
struct Kind {
  DLDataType dtype;
  DLDevice device;
};

// The kind of elements that a C++ type stands for, in the processor's memory unless said otherwise.
template <typename T>
Kind kind(DLDevice device = {kDLCPU, 0});

bool operator==(DLDataType a, DLDataType b);
bool operator==(DLDevice a, DLDevice b);

struct TensorArgument {
  static constexpr int kMostDimensions = 8;

  const char* name;
  bool given;     // false where the argument is None
  void* address;  // of the first element
  Kind kind;
  int dimensions;
  std::int64_t sizes[kMostDimensions], strides[kMostDimensions];  // in elements

  template <typename T>
  T* at() const {
    return static_cast<T*>(address);
  }
};

// All of these throw what pybind11 turns into a Python error: ValueError for what a tensor is not.

// Called from `catch (...)`, where no pybind11 stands between a function and Python: sets the
// error.
void set_python_error();

// A tensor as it is.
TensorArgument read_tensor(const char* name, PyObject* tensor);

// A tensor of that kind, of those sizes (`kAnySize` for any) and of that layout.
TensorArgument checked(const char* name, PyObject* tensor, Kind kind,
                       std::initializer_list<std::int64_t> sizes,
                       Layout layout = Layout::kContiguous);

// The same, or None: not given, its address null, its sizes and strides 0.
TensorArgument checked_or_none(const char* name, PyObject* tensor, Kind kind,
                               std::initializer_list<std::int64_t> sizes,
                               Layout layout = Layout::kContiguous);

// ValueError: "`name` must be `expected`, came ...".
[[noreturn]] void refuse(const TensorArgument& argument, const std::string& expected);

// The floating-point type that hidden states may have.
DType steered_type(const TensorArgument& hidden);

// The type that a hidden state of `dtype` is steered in: double for a double, else float.
Kind wide_kind(DType dtype, DLDevice device);

}  // namespace expertsteer
