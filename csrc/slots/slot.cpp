// A slot stands in the place of a live layer's `forward`: it calls the original, then steers what
// came out, in place, through the raw pointer.
//
// A Python hook costs microseconds per layer and step before it adds anything. Here an unsteered
// call costs one comparison more, and a steered one the addition and little else: the tensor is
// read through DLPack's C exchange table, without a Python attribute but `requires_grad`. Whatever
// is out of the ordinary (autograd, another device or type, proxies of a tracer) goes to a Python
// function, which may do it slowly.
#include "slot.h"

#include <structmember.h>

#include <cstddef>

#include "dlpack_view.h"
#include "kernels/steer.h"
#include "passes.h"
#include "steer_arguments.h"

namespace expertsteer {
namespace {

constexpr std::int64_t kReleaseGil = 1 << 16;  // elements worth letting other threads run

struct SlotObject {
  PyObject_HEAD PyObject* original;  // the layer's own forward
  PyObject* slowly;                  // what serves a call that is out of the ordinary
  PassesObject* passes;
  std::int64_t serial;  // of the last pass it ran in
  bool off;             // calls the original and nothing else
  bool armed;           // `args` below are right for tensors of this kind
  DLDevice device;
  DLDataType dtype;
  std::int64_t rows_batch;  // sequences that rows and strengths are given for; 1 serves any number
  Steer args;
  PyObject* held;  // the tensors that `args` point into
};

SlotObject* slot_of(PyObject* object) { return reinterpret_cast<SlotObject*>(object); }

// Steers in place when everything is as prepared; false when the slow path has to decide.
bool steer_quickly(const SlotObject* self, const OpenPass& pass, PyObject* tensor) {
  DLTensor view;
  if (!self->armed || !view_of(tensor, &view)) return false;
  const bool as_prepared =
      view.ndim == 3 && view.shape[2] == self->args.width && view.shape[0] == pass.batch &&
      view.shape[1] == pass.tokens && view.device.type == self->device.type &&
      view.device.id == self->device.id && view.dtype.code == self->dtype.code &&
      view.dtype.bits == self->dtype.bits && view.strides != nullptr &&
      (self->rows_batch == 1 || self->rows_batch == pass.batch) &&
      (!pass.mask ||
       (pass.mask_device.type == self->device.type && pass.mask_device.id == self->device.id));
  if (!as_prepared) return false;
  // Elements that share an address (an expanded tensor) would be steered more than once.
  if ((view.strides[0] == 0 && view.shape[0] > 1) || (view.strides[1] == 0 && view.shape[1] > 1)) {
    return false;
  }
  Steer args = self->args;
  args.hidden = static_cast<char*>(view.data) + view.byte_offset;
  args.batch = pass.batch;
  args.tokens = pass.tokens;
  args.batch_stride = view.strides[0];
  args.token_stride = view.strides[1];
  args.element_stride = view.strides[2];
  args.mask = pass.mask;
  args.mask_batch_stride = pass.mask_batch_stride;
  args.mask_token_stride = pass.mask_token_stride;
  if (view.device.type != kDLCPU) return steer_on_device(args, view.device);
  if (args.batch * args.tokens * args.width < kReleaseGil) {
    steer_cpu(args);
  } else {
    PyObject* held = Py_NewRef(self->held);  // another thread may arm the slot anew meanwhile
    Py_BEGIN_ALLOW_THREADS;
    steer_cpu(args);
    Py_END_ALLOW_THREADS;
    Py_DECREF(held);
  }
  return true;
}

PyObject* slot_call(PyObject* object, PyObject* args, PyObject* kwargs) {
  SlotObject* self = slot_of(object);
  if (self->off) return PyObject_Call(self->original, args, kwargs);
  OpenPass* pass = pass_of_this_thread(self->passes);
  const bool known = pass && pass->open;
  if (known) {
    ++pass->ran;
    self->serial = pass->serial;
  } else {  // an error, unless a compiler is looking
    PyObject* allowed = PyObject_CallFunctionObjArgs(self->slowly, Py_None, nullptr);
    if (!allowed) return nullptr;
    Py_DECREF(allowed);
  }
  PyObject* output = PyObject_Call(self->original, args, kwargs);
  if (!output || (known && !pass->steers)) return output;
  PyObject* hidden =
      PyTuple_CheckExact(output) && PyTuple_GET_SIZE(output) ? PyTuple_GET_ITEM(output, 0) : output;
  if (known && is_plain_tensor(hidden) && steer_quickly(self, *pass, hidden)) return output;
  if (PyErr_Occurred()) {
    Py_DECREF(output);
    return nullptr;
  }
  PyObject* steered = PyObject_CallFunctionObjArgs(self->slowly, output, nullptr);
  Py_DECREF(output);
  return steered;
}

int slot_init(PyObject* object, PyObject* args, PyObject*) {
  PyObject *original, *slowly, *passes;
  if (!PyArg_ParseTuple(args, "OOO!", &original, &slowly, passes_type, &passes)) return -1;
  SlotObject* self = slot_of(object);
  Py_XSETREF(self->original, Py_NewRef(original));
  Py_XSETREF(self->slowly, Py_NewRef(slowly));
  Py_XSETREF(self->passes, reinterpret_cast<PassesObject*>(Py_NewRef(passes)));
  return 0;
}

int slot_traverse(PyObject* object, visitproc visit, void* arg) {
  SlotObject* self = slot_of(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->original);
  Py_VISIT(self->slowly);
  Py_VISIT(self->passes);
  Py_VISIT(self->held);
  return 0;
}

int slot_clear(PyObject* object) {
  SlotObject* self = slot_of(object);
  Py_CLEAR(self->original);
  Py_CLEAR(self->slowly);
  Py_CLEAR(self->passes);
  self->armed = false;
  Py_CLEAR(self->held);
  return 0;
}

// arm(dtype, operation, table, inverse_norms, rows, strengths, gates, thresholds, threads): what
// steers states of that type (the hidden states' place in DType) until the next arm or disarm.
PyObject* slot_arm(PyObject* object, PyObject* given) {
  SlotObject* self = slot_of(object);
  SteerTensors tensors;
  int dtype, operation, threads;
  if (!PyArg_ParseTuple(given, "iiOOOOOOi", &dtype, &operation, &tensors.table,
                        &tensors.inverse_norms, &tensors.rows, &tensors.strengths, &tensors.gates,
                        &tensors.thresholds, &threads)) {
    return nullptr;
  }
  if (dtype < 0 || dtype > 3) {
    PyErr_Format(PyExc_ValueError, "dtype must be from 0 to 3, came %d", dtype);
    return nullptr;
  }
  try {
    const auto type = static_cast<DType>(dtype);
    const Standing standing = standing_arguments(tensors, type, kAnySize, operation, threads);
    self->dtype = dlpack_type(type);
    self->device = standing.device;
    self->rows_batch = standing.sequences;
    self->args = standing.args;
  } catch (...) {
    set_python_error();
    return nullptr;
  }
  Py_XSETREF(self->held, Py_NewRef(given));
  self->armed = true;
  Py_RETURN_NONE;
}

PyObject* slot_disarm(PyObject* object, PyObject*) {
  slot_of(object)->armed = false;
  Py_CLEAR(slot_of(object)->held);
  Py_RETURN_NONE;
}

PyMethodDef slot_methods[] = {
    {"arm", slot_arm, METH_VARARGS, nullptr},
    {"disarm", slot_disarm, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyMemberDef slot_members[] = {
    {"original", T_OBJECT_EX, offsetof(SlotObject, original), READONLY, nullptr},
    {"off", T_BOOL, offsetof(SlotObject, off), 0, nullptr},
    {"armed", T_BOOL, offsetof(SlotObject, armed), READONLY, nullptr},
    {"serial", T_LONGLONG, offsetof(SlotObject, serial), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot slot_slots[] = {
    {Py_tp_call, reinterpret_cast<void*>(slot_call)},
    {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
    {Py_tp_init, reinterpret_cast<void*>(slot_init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<slot_clear>)},
    {Py_tp_traverse, reinterpret_cast<void*>(slot_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(slot_clear)},
    {Py_tp_methods, slot_methods},
    {Py_tp_members, slot_members},
    {0, nullptr},
};
PyType_Spec slot_spec = {"expertsteer._C.Slot", sizeof(SlotObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slot_slots};

// Compilers cannot trace a C callable, but they look `__call__` up in the type. Put there behind
// the back of the type's call slot, a Python function is what they trace, and calls stay in C.
PyObject* set_traced_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !PyType_Check(args[0])) {
    PyErr_SetString(PyExc_TypeError, "set_traced_call takes a type and a function");
    return nullptr;
  }
  auto* type = reinterpret_cast<PyTypeObject*>(args[0]);
  if (PyDict_SetItemString(type->tp_dict, "__call__", args[1]) < 0) return nullptr;
  PyType_Modified(type);
  Py_RETURN_NONE;
}

// use_tensor_type(torch.Tensor) -> whether it offers the C exchange table
PyObject* use_tensor_type(PyObject*, PyObject* type) {
  return PyBool_FromLong(set_tensor_type(type));
}

// use_recorders(_get_tracing_state, _len_torch_dispatch_stack, vars(torch.autograd.forward_ad)),
// which the decoder's slot asks once in each pass
PyObject* use_recorders(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "use_recorders takes two functions and a dictionary");
    return nullptr;
  }
  if (!set_recorders(args[0], args[1], args[2])) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"set_traced_call", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(set_traced_call)),
     METH_FASTCALL, nullptr},
    {"use_tensor_type", use_tensor_type, METH_O, nullptr},
    {"use_recorders", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(use_recorders)),
     METH_FASTCALL, nullptr},
    {"all_finite", all_finite, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool define_slots(PyObject* module) {
  PyObject* slot_type = define_passes() ? PyType_FromSpec(&slot_spec) : nullptr;
  PyObject* decoder_type = slot_type ? define_decoder_slot() : nullptr;
  if (!decoder_type) return false;
  return PyModule_AddObjectRef(module, "Passes", reinterpret_cast<PyObject*>(passes_type)) == 0 &&
         PyModule_AddObjectRef(module, "Slot", slot_type) == 0 &&
         PyModule_AddObjectRef(module, "DecoderSlot", decoder_type) == 0 &&
         PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace expertsteer
