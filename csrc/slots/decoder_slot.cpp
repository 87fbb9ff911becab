// The decoder's forward. Where the numbers at hand tell that a pass steers all of its tokens or
// none, it is opened here; every other pass goes to a Python function, which runs it whole.
#include <Python.h>
#include <structmember.h>

#include <cstddef>

#include "passes.h"

namespace expertsteer {
namespace {

struct DecoderSlotObject {
  PyObject_HEAD PyObject* original;
  PyObject* slowly;   // (*args, **kwargs): places the tokens and runs the pass
  PyObject* after;    // (output, kwargs, serial, ran): what is wrong with a pass that was run here
  PyObject* decoder;  // whose `training` is looked at
  PassesObject* passes;
  PyObject* cache_name;  // of the argument that was the cache last time
  bool off;
  int positions;  // 0 all, 1 prompt, 2 generated, 3 last; -1 leaves every pass to Python
  std::int64_t rows_batch, slots;
};

DecoderSlotObject* decoder_of(PyObject* object) {
  return reinterpret_cast<DecoderSlotObject*>(object);
}

struct Names {
  PyObject *input_ids, *inputs_embeds, *attention_mask, *get_seq_length, *training,
      *last_hidden_state;
};
Names names;

// An entry of the arguments by name, borrowed; null where it is missing or None.
PyObject* given(PyObject* kwargs, PyObject* name) {
  PyObject* value = PyDict_GetItemWithError(kwargs, name);
  return value == Py_None ? nullptr : value;
}

// A mask [batch, length] of 64-bit integers in memory, and all of them ones; at most a few
// thousand, beyond which asking the cache is cheaper.
bool pads_nothing(PyObject* mask) {
  constexpr std::int64_t kMost = 4096;
  DLTensor view;
  if (!is_plain_tensor(mask) || !view_of(mask, &view)) return false;
  if (view.ndim != 2 || view.device.type != kDLCPU || view.dtype.bits != 64 ||
      view.dtype.code != kDLInt || !view.strides || view.shape[0] * view.shape[1] > kMost) {
    return false;
  }
  const auto* data =
      reinterpret_cast<const std::int64_t*>(static_cast<const char*>(view.data) + view.byte_offset);
  bool all = true;
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    for (std::int64_t t = 0; t < view.shape[1]; ++t) {
      all &= data[b * view.strides[0] + t * view.strides[1]] != 0;
    }
  }
  return all;
}

// The cache among the arguments, whatever its name is: the one that knows its length. Borrowed;
// null where there is none.
PyObject* find_cache(DecoderSlotObject* self, PyObject* kwargs) {
  if (self->cache_name) {
    if (PyObject* cache = given(kwargs, self->cache_name)) return cache;
    if (PyErr_Occurred()) return nullptr;
  }
  PyObject *name, *value;
  Py_ssize_t at = 0;
  while (PyDict_Next(kwargs, &at, &name, &value)) {
    if (value == Py_None || PyBool_Check(value) || PyLong_Check(value) || is_plain_tensor(value)) {
      continue;
    }
    if (!PyObject_HasAttr(value, names.get_seq_length)) continue;
    Py_XSETREF(self->cache_name, Py_NewRef(name));
    return value;
  }
  return nullptr;
}

// Tokens that the cache holds; -1 where it cannot tell, or keeps that on a device.
std::int64_t cached_tokens(PyObject* cache) {
  PyObject* length = PyObject_CallMethodNoArgs(cache, names.get_seq_length);
  if (!length) {
    PyErr_Clear();  // Python says what is wrong with it
    return -1;
  }
  const std::int64_t tokens = PyLong_CheckExact(length) ? PyLong_AsLongLong(length) : -1;
  Py_DECREF(length);
  return tokens;
}

// 1: all tokens are steered, 0: none, -1: Python has to tell.
int placed(DecoderSlotObject* self, OpenPass* pass, std::int64_t tokens, PyObject* kwargs) {
  if (self->positions == 0) {
    PyObject* mask = given(kwargs, names.attention_mask);
    if (!mask || pads_nothing(mask)) {
      pass->end = -1;
      return 1;
    }
  }
  if (pass->prompt_length < 0) return -1;
  PyObject* cache = find_cache(self, kwargs);
  if (!cache || cache != pass->cache) return -1;
  const std::int64_t cached = cached_tokens(cache);
  if (cached < pass->prompt_length) return -1;
  pass->end = cached + tokens;
  return self->positions == 1 ? 0 : 1;
}

bool shape_of(PyObject* kwargs, std::int64_t* batch, std::int64_t* tokens) {
  PyObject* ids = given(kwargs, names.input_ids);
  if (!ids) ids = given(kwargs, names.inputs_embeds);
  DLTensor view;
  if (!ids || !is_plain_tensor(ids) || !view_of(ids, &view) || view.ndim < 2) return false;
  *batch = view.shape[0];
  *tokens = view.shape[1];
  return true;
}

bool trains(PyObject* decoder) {
  PyObject* training = PyObject_GetAttr(decoder, names.training);
  if (!training) PyErr_Clear();
  Py_XDECREF(training);
  return training != Py_False;
}

bool output_is_finite(PyObject* output) {
  PyObject* hidden = PyTuple_CheckExact(output) && PyTuple_GET_SIZE(output)
                         ? Py_NewRef(PyTuple_GET_ITEM(output, 0))
                         : PyObject_GetAttr(output, names.last_hidden_state);
  PyObject* answer = hidden ? all_finite(nullptr, hidden) : nullptr;
  PyErr_Clear();  // Python says what is wrong with it
  Py_XDECREF(hidden);
  Py_XDECREF(answer);
  return answer == Py_True;
}

// A pass in which nothing is steered, also where another thread changes that before it has ended.
PyObject* unsteered(DecoderSlotObject* self, PyObject* args, PyObject* kwargs) {
  OpenPass* pass = new_or_known_pass(self->passes);
  const bool inner = pass->open;
  if (!inner) open_pass(self->passes, pass, false, 0, 0);
  PyObject* output = PyObject_Call(self->original, args, kwargs);
  if (!inner) pass->open = false;
  return output;
}

PyObject* decoder_call(PyObject* object, PyObject* args, PyObject* kwargs) {
  DecoderSlotObject* self = decoder_of(object);
  if (self->off) return unsteered(self, args, kwargs);
  const int recorded = is_recorded();
  if (recorded < 0) return nullptr;
  if (recorded) return PyObject_Call(self->slowly, args, kwargs);
  std::int64_t batch, tokens;
  const bool plain = self->positions >= 0 && kwargs && PyTuple_GET_SIZE(args) == 0 &&
                     shape_of(kwargs, &batch, &tokens) &&
                     (self->rows_batch == 1 || self->rows_batch == batch) && !trains(self->decoder);
  OpenPass* pass = plain ? new_or_known_pass(self->passes) : nullptr;
  const int steers = plain && !pass->open ? placed(self, pass, tokens, kwargs) : -1;
  if (PyErr_Occurred()) return nullptr;
  if (steers < 0) return PyObject_Call(self->slowly, args, kwargs);
  open_pass(self->passes, pass, steers == 1, batch, tokens);
  ++pass->quick;
  pass->chose |= steers == 1;
  const std::int64_t serial = pass->serial;
  PyObject* output = PyObject_Call(self->original, args, kwargs);
  pass->open = false;
  if (!output || (pass->ran >= self->slots && output_is_finite(output))) return output;
  PyObject* checked =
      PyObject_CallFunction(self->after, "OOLL", output, kwargs, static_cast<long long>(serial),
                            static_cast<long long>(pass->ran));
  Py_DECREF(output);
  return checked;
}

int decoder_init(PyObject* object, PyObject* args, PyObject*) {
  PyObject *original, *slowly, *after, *decoder, *passes;
  if (!PyArg_ParseTuple(args, "OOOOO!", &original, &slowly, &after, &decoder, passes_type,
                        &passes)) {
    return -1;
  }
  DecoderSlotObject* self = decoder_of(object);
  Py_XSETREF(self->original, Py_NewRef(original));
  Py_XSETREF(self->slowly, Py_NewRef(slowly));
  Py_XSETREF(self->after, Py_NewRef(after));
  Py_XSETREF(self->decoder, Py_NewRef(decoder));
  Py_XSETREF(self->passes, reinterpret_cast<PassesObject*>(Py_NewRef(passes)));
  self->positions = -1;
  return 0;
}

int decoder_traverse(PyObject* object, visitproc visit, void* arg) {
  DecoderSlotObject* self = decoder_of(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->original);
  Py_VISIT(self->slowly);
  Py_VISIT(self->after);
  Py_VISIT(self->decoder);
  Py_VISIT(self->passes);
  Py_VISIT(self->cache_name);
  return 0;
}

int decoder_clear(PyObject* object) {
  DecoderSlotObject* self = decoder_of(object);
  Py_CLEAR(self->original);
  Py_CLEAR(self->slowly);
  Py_CLEAR(self->after);
  Py_CLEAR(self->decoder);
  Py_CLEAR(self->passes);
  Py_CLEAR(self->cache_name);
  return 0;
}

// expect(positions, rows_batch, slots)
PyObject* decoder_expect(PyObject* object, PyObject* args) {
  long long rows_batch, slots;
  int positions;
  if (!PyArg_ParseTuple(args, "iLL", &positions, &rows_batch, &slots)) return nullptr;
  DecoderSlotObject* self = decoder_of(object);
  self->positions = positions;
  self->rows_batch = rows_batch;
  self->slots = slots;
  Py_RETURN_NONE;
}

PyMethodDef decoder_methods[] = {
    {"expect", decoder_expect, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyMemberDef decoder_members[] = {
    {"original", T_OBJECT_EX, offsetof(DecoderSlotObject, original), READONLY, nullptr},
    {"off", T_BOOL, offsetof(DecoderSlotObject, off), 0, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};
PyType_Slot decoder_slots[] = {
    {Py_tp_call, reinterpret_cast<void*>(decoder_call)},
    {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
    {Py_tp_init, reinterpret_cast<void*>(decoder_init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<decoder_clear>)},
    {Py_tp_traverse, reinterpret_cast<void*>(decoder_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(decoder_clear)},
    {Py_tp_methods, decoder_methods},
    {Py_tp_members, decoder_members},
    {0, nullptr},
};
PyType_Spec decoder_spec = {"expertsteer._C.DecoderSlot", sizeof(DecoderSlotObject), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                            decoder_slots};

bool intern_names() {
  names = Names{PyUnicode_InternFromString("input_ids"),
                PyUnicode_InternFromString("inputs_embeds"),
                PyUnicode_InternFromString("attention_mask"),
                PyUnicode_InternFromString("get_seq_length"),
                PyUnicode_InternFromString("training"),
                PyUnicode_InternFromString("last_hidden_state")};
  return names.last_hidden_state != nullptr;
}

}  // namespace

PyObject* define_decoder_slot() {
  return intern_names() ? PyType_FromSpec(&decoder_spec) : nullptr;
}

}  // namespace expertsteer
