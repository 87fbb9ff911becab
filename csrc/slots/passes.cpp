#include "passes.h"

#include <new>

#include "kernels/finite.h"
#include "tensor_argument.h"

namespace expertsteer {

PyTypeObject* passes_type = nullptr;

OpenPass* pass_of_this_thread(PassesObject* self) {
  const unsigned long thread = PyThread_get_thread_ident();
  for (OpenPass& pass : *self->passes) {
    if (pass.thread == thread) return &pass;
  }
  return nullptr;
}

OpenPass* new_or_known_pass(PassesObject* self) {
  OpenPass* pass = pass_of_this_thread(self);
  if (!pass) {
    pass = &self->passes->emplace_back();
    pass->thread = PyThread_get_thread_ident();
  }
  return pass;
}

void open_pass(PassesObject* self, OpenPass* pass, bool steers, std::int64_t batch,
               std::int64_t tokens) {
  pass->open = true;
  pass->steers = steers;
  pass->batch = batch;
  pass->tokens = tokens;
  pass->mask = nullptr;
  Py_CLEAR(pass->held);
  pass->serial = ++self->serial;
  pass->ran = 0;
}

PyObject* all_finite(PyObject*, PyObject* tensor) {
  DLTensor view;
  if (!is_plain_tensor(tensor) || !view_of(tensor, &view)) {
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
  }
  std::int64_t count = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    if (view.shape[i] != 1 && view.strides && view.strides[i] != count) Py_RETURN_NONE;
    count *= view.shape[i];
  }
  const bool known = view.device.type == kDLCPU && view.dtype.lanes == 1;
  const void* data = static_cast<const char*>(view.data) + view.byte_offset;
  if (known && view.dtype.code == kDLFloat && view.dtype.bits == 32) {
    return PyBool_FromLong(
        finite<std::uint32_t>(static_cast<const std::uint32_t*>(data), count, 0x7f800000u));
  }
  if (known && (view.dtype.code == kDLFloat || view.dtype.code == kDLBfloat) &&
      view.dtype.bits == 16) {
    return PyBool_FromLong(finite<std::uint16_t>(static_cast<const std::uint16_t*>(data), count,
                                                 view.dtype.code == kDLBfloat ? 0x7f80 : 0x7c00));
  }
  Py_RETURN_NONE;
}

namespace {

PyObject* passes_new(PyTypeObject* type, PyObject*, PyObject*) {
  auto* self = reinterpret_cast<PassesObject*>(type->tp_alloc(type, 0));
  if (self) self->passes = new (std::nothrow) std::list<OpenPass>();
  if (self && !self->passes) {
    Py_DECREF(self);
    return PyErr_NoMemory();
  }
  return reinterpret_cast<PyObject*>(self);
}

void passes_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  auto* passes = reinterpret_cast<PassesObject*>(object)->passes;
  for (OpenPass& pass : *passes) Py_CLEAR(pass.held);
  delete passes;
  type->tp_free(object);
  Py_DECREF(type);
}

// open(steers, batch, tokens, mask) -> serial; the mask is bool [batch, tokens], None for every
// token, or False where it cannot be read here, so that no slot takes the quick way
PyObject* passes_open(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  constexpr int kCount = 4;
  if (count != kCount) {
    PyErr_SetString(PyExc_TypeError, "open takes three integers and a mask");
    return nullptr;
  }
  std::int64_t numbers[kCount - 1];
  for (int i = 0; i < kCount - 1; ++i) numbers[i] = PyLong_AsLongLong(args[i]);
  if (PyErr_Occurred()) return nullptr;
  auto* self = reinterpret_cast<PassesObject*>(object);
  TensorArgument mask{};
  try {
    if (args[3] != Py_None && args[3] != Py_False) {
      const DLDevice device = read_tensor("mask", args[3]).kind.device;
      mask =
          checked("mask", args[3], kind<bool>(device), {numbers[1], numbers[2]}, Layout::kStrided);
    }
  } catch (...) {
    set_python_error();
    return nullptr;
  }
  OpenPass* pass = new_or_known_pass(self);
  open_pass(self, pass, numbers[0] != 0, numbers[1], numbers[2]);
  static const std::uint8_t nowhere = 0;  // on no device that a slot knows: never read
  if (args[3] == Py_False) {
    pass->mask = &nowhere;
    pass->mask_device = DLDevice{0, 0};
  } else if (mask.given) {
    pass->held = Py_NewRef(args[3]);
    pass->mask = mask.address ? static_cast<const std::uint8_t*>(mask.address) : &nowhere;
    pass->mask_batch_stride = mask.strides[0];
    pass->mask_token_stride = mask.strides[1];
    pass->mask_device = mask.kind.device;
  }
  return PyLong_FromLongLong(pass->serial);
}

// close() -> how many slots ran in the pass
PyObject* passes_close(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<PassesObject*>(object);
  OpenPass* pass = pass_of_this_thread(self);
  const std::int64_t ran = pass ? pass->ran : 0;
  if (pass) {
    pass->open = false;
    pass->mask = nullptr;
    Py_CLEAR(pass->held);
  }
  return PyLong_FromLongLong(ran);
}

// set_prompt(length, cache): where the prompt of the running `generate` ends, -1 where that is
// unknown or it is over, and the address of the cache it went into
PyObject* passes_set_prompt(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "set_prompt takes a length and an address");
    return nullptr;
  }
  const std::int64_t length = PyLong_AsLongLong(args[0]);
  void* cache = PyLong_AsVoidPtr(args[1]);
  if (PyErr_Occurred()) return nullptr;
  OpenPass* pass = new_or_known_pass(reinterpret_cast<PassesObject*>(object));
  pass->prompt_length = length;
  pass->cache = cache;
  Py_RETURN_NONE;
}

// tally() -> passes of this thread that Python did not open since the last tally, whether any of
// them steered, and where the last one ended, -1 where no cache was asked
PyObject* passes_tally(PyObject* object, PyObject*) {
  OpenPass* pass = pass_of_this_thread(reinterpret_cast<PassesObject*>(object));
  const std::int64_t quick = pass ? pass->quick : 0;
  const bool chose = pass && pass->chose;
  const std::int64_t end = pass ? pass->end : -1;
  if (pass) {
    pass->quick = 0;
    pass->chose = false;
    pass->end = -1;
  }
  return Py_BuildValue("LOL", static_cast<long long>(quick), chose ? Py_True : Py_False,
                       static_cast<long long>(end));
}

PyMethodDef passes_methods[] = {
    {"open", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(passes_open)), METH_FASTCALL,
     nullptr},
    {"close", passes_close, METH_NOARGS, nullptr},
    {"set_prompt", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(passes_set_prompt)),
     METH_FASTCALL, nullptr},
    {"tally", passes_tally, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot passes_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(passes_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(passes_dealloc)},
    {Py_tp_methods, passes_methods},
    {0, nullptr},
};
PyType_Spec passes_spec = {"expertsteer._C.Passes", sizeof(PassesObject), 0, Py_TPFLAGS_DEFAULT,
                           passes_slots};

}  // namespace

PyTypeObject* define_passes() {
  return passes_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&passes_spec));
}

}  // namespace expertsteer
