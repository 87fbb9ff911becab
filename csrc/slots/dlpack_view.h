// A torch tensor's address, shape and strides without torch's headers: DLPack's C exchange table.
//
// The layout below is DLPack's (https://dmlc.github.io/dlpack/latest/c_api.html, version 1.2 or
// later, major version 1), which a tensor type offers as `__dlpack_c_exchange_api__`. Torch has it
// since 2.10; without it `view_of` says no, and callers take their slow path.
#pragma once

#include <Python.h>

#include <cstdint>

#include "kernels/steer.h"

namespace expertsteer {

enum : std::int32_t { kDLCPU = 1, kDLCUDA = 2 };
enum : std::uint8_t { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4, kDLBool = 6 };

struct DLDevice {
  std::int32_t type, id;
};

struct DLDataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

DLDataType dlpack_type(DType dtype);

// Which type's tensors are looked at; true when it offers the table.
bool set_tensor_type(PyObject* type);

// Of exactly that type: what `view_of` may be asked about.
bool is_exact_tensor(PyObject* object);

// Of exactly that type, and not recorded by autograd. False with an error set if that failed.
bool is_plain_tensor(PyObject* object);

// What the tensor holds, valid while the tensor is; false where it cannot be told.
bool view_of(PyObject* tensor, DLTensor* view);

// What asks torch whether somebody records what is done to tensors (`torch._C._get_tracing_state`,
// `torch._C._len_torch_dispatch_stack`) and the dictionary that holds forward mode's level. False
// with an error set if that failed.
bool set_recorders(PyObject* tracing_state, PyObject* dispatch_modes, PyObject* forward_mode);

// Whether a tracer, a dispatch mode or forward-mode differentiation follows what is done, which
// would not see a change through a pointer: 1 or 0, -1 with an error set.
int is_recorded();

// `steer_cuda` on the tensor's device and torch's current stream there; false where that is not
// built in, with an error set where the launch failed.
bool steer_on_device(const Steer& args, DLDevice device);

}  // namespace expertsteer
