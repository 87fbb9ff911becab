// The types `Passes` and `Slot` of the extension module, and the functions beside them.
#pragma once

#include <Python.h>

namespace expertsteer {

// Adds them to the module; false with a Python error set.
bool define_slots(PyObject* module);

}  // namespace expertsteer
