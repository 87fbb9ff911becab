#include "dlpack_view.h"

namespace expertsteer {
namespace {

struct ExchangeTable {
  struct {
    std::uint32_t major, minor;
    void* previous;
  } header;
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*view)(void* tensor, DLTensor* out);  // may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** out);
};

PyObject* tensor_type = nullptr;
PyObject* requires_grad = nullptr;
const ExchangeTable* table = nullptr;
PyObject* tracing_state = nullptr;
PyObject* dispatch_modes = nullptr;
PyObject* forward_mode = nullptr;
PyObject* current_level = nullptr;

// An integer above `least`; -1 with an error set. Takes the reference.
int above(PyObject* number, long least) {
  if (!number) return -1;
  const long value = PyLong_AsLong(number);
  Py_DECREF(number);
  return PyErr_Occurred() ? -1 : value > least;
}

}  // namespace

DLDataType dlpack_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return {kDLFloat, 64, 1};
    case DType::kFloat16:
      return {kDLFloat, 16, 1};
    case DType::kBFloat16:
      return {kDLBfloat, 16, 1};
    default:
      return {kDLFloat, 32, 1};
  }
}

bool set_tensor_type(PyObject* type) {
  Py_INCREF(type);
  Py_XSETREF(tensor_type, type);
  if (!requires_grad) requires_grad = PyUnicode_InternFromString("requires_grad");
  table = nullptr;
  PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  if (capsule) {
    table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);  // the type keeps it
  }
  PyErr_Clear();
  if (table && (table->header.major != 1 || !table->view)) table = nullptr;
  return table != nullptr;
}

bool is_exact_tensor(PyObject* object) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object)) == tensor_type;
}

bool set_recorders(PyObject* tracing, PyObject* modes, PyObject* forward) {
  if (!current_level) current_level = PyUnicode_InternFromString("_current_level");
  if (!PyDict_Check(forward)) {
    PyErr_SetString(PyExc_TypeError, "use_recorders takes two functions and a dictionary");
    return false;
  }
  Py_XSETREF(tracing_state, Py_NewRef(tracing));
  Py_XSETREF(dispatch_modes, Py_NewRef(modes));
  Py_XSETREF(forward_mode, Py_NewRef(forward));
  return true;
}

int is_recorded() {
  if (!tracing_state) return 0;
  PyObject* state = PyObject_CallNoArgs(tracing_state);
  if (!state) return -1;
  const bool traced = state != Py_None;
  Py_DECREF(state);
  if (traced) return 1;
  if (const int modes = above(PyObject_CallNoArgs(dispatch_modes), 0)) return modes;
  PyObject* level = PyDict_GetItemWithError(forward_mode, current_level);
  return level ? above(Py_NewRef(level), -1) : 0;
}

bool is_plain_tensor(PyObject* object) {
  if (!is_exact_tensor(object)) return false;
  PyObject* recorded = PyObject_GetAttr(object, requires_grad);
  if (!recorded) return false;
  Py_DECREF(recorded);  // True or False, which stay
  return recorded == Py_False;
}

bool view_of(PyObject* tensor, DLTensor* view) {
  if (!table) return false;
  if (table->view(tensor, view) == 0) return true;
  PyErr_Clear();  // a tensor without memory, a sparse one: the slow path says what is wrong
  return false;
}

bool steer_on_device(const Steer& args, DLDevice device) {
#ifdef EXPERTSTEER_WITH_CUDA
  void* stream = nullptr;
  if (device.type != kDLCUDA || !table->current_stream) return false;
  if (table->current_stream(device.type, device.id, &stream) != 0) return false;
  if (const char* error = steer_cuda_on(args, device.id, stream)) {
    PyErr_Format(PyExc_RuntimeError, "steer_cuda: %s", error);
    return false;
  }
  return true;
#else
  (void)args;
  (void)device;
  return false;
#endif
}

}  // namespace expertsteer
