// The structs of steer.h from tensors, checked: for a call, and for what a slot keeps.
#pragma once

#include <Python.h>

#include "kernels/steer.h"
#include "tensor_argument.h"

namespace expertsteer {

// What steers, as `Steer` describes it; `gates`, `thresholds` and `inverse_norms` may be None.
struct SteerTensors {
  PyObject *table, *inverse_norms, *rows, *strengths, *gates, *thresholds;
};

Steer steer_arguments(PyObject* hidden, const SteerTensors& tensors, PyObject* mask, int operation,
                      int threads, std::int32_t device_type);

// All of `Steer` but hidden state and mask.
struct Standing {
  Steer args;
  DLDevice device;         // of all tensors
  std::int64_t sequences;  // that they are given for; 1 serves any number
};

// For states of `dtype`; `width` may be `kAnySize`.
Standing standing_arguments(const SteerTensors& tensors, DType dtype, std::int64_t width,
                            int operation, int threads);

}  // namespace expertsteer
