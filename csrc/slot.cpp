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
#include <list>
#include <new>

#include "dlpack_view.h"
#include "finite.h"
#include "steer.h"

namespace expertsteer {
namespace {

constexpr std::int64_t kReleaseGil = 1 << 16;  // elements worth letting other threads run

// What the forward pass that is open in one thread told all slots.
struct OpenPass {
  unsigned long thread = 0;
  std::int64_t prompt_length = -1;  // of the running `generate`, -1 outside
  bool open = false;
  bool steers = false;  // any token at all
  const std::uint8_t* mask = nullptr;
  std::int64_t mask_batch_stride = 0, mask_token_stride = 0, batch = 0, tokens = 0;
  DLDevice mask_device{0, 0};
  std::int64_t serial = 0, ran = 0;
};

// Passes of one steering, one per thread. The interpreter's lock guards them.
struct PassesObject {
  PyObject_HEAD std::list<OpenPass>* passes;  // a list: addresses stay while others join
  std::int64_t serial;
};

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
  pass->serial = ++self->serial;
  pass->ran = 0;
}

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
  delete reinterpret_cast<PassesObject*>(object)->passes;
  type->tp_free(object);
  Py_DECREF(type);
}

// open(steers, batch, tokens, mask, mask_batch_stride, mask_token_stride, mask_device_type,
//      mask_device_id) -> serial
PyObject* passes_open(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  constexpr int kCount = 8;
  if (count != kCount) {
    PyErr_SetString(PyExc_TypeError, "open takes eight integers");
    return nullptr;
  }
  std::int64_t numbers[kCount];
  for (int i = 0; i < kCount; ++i) numbers[i] = PyLong_AsLongLong(args[i]);
  if (PyErr_Occurred()) return nullptr;
  auto* self = reinterpret_cast<PassesObject*>(object);
  OpenPass* pass = new_or_known_pass(self);
  open_pass(self, pass, numbers[0] != 0, numbers[1], numbers[2]);
  pass->mask = reinterpret_cast<const std::uint8_t*>(numbers[3]);
  pass->mask_batch_stride = numbers[4];
  pass->mask_token_stride = numbers[5];
  pass->mask_device =
      DLDevice{static_cast<std::int32_t>(numbers[6]), static_cast<std::int32_t>(numbers[7])};
  return PyLong_FromLongLong(pass->serial);
}

// close() -> how many slots ran in the pass
PyObject* passes_close(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<PassesObject*>(object);
  OpenPass* pass = pass_of_this_thread(self);
  const std::int64_t ran = pass ? pass->ran : 0;
  if (pass) pass->open = false;
  return PyLong_FromLongLong(ran);
}

// set_prompt(length): where the prompt of the running `generate` ends, -1 where it is over
PyObject* passes_set_prompt(PyObject* object, PyObject* length) {
  const std::int64_t value = PyLong_AsLongLong(length);
  if (PyErr_Occurred()) return nullptr;
  new_or_known_pass(reinterpret_cast<PassesObject*>(object))->prompt_length = value;
  Py_RETURN_NONE;
}

PyMethodDef passes_methods[] = {
    {"open", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(passes_open)), METH_FASTCALL,
     nullptr},
    {"close", passes_close, METH_NOARGS, nullptr},
    {"set_prompt", passes_set_prompt, METH_O, nullptr},
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
PyTypeObject* passes_type = nullptr;

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
    Py_BEGIN_ALLOW_THREADS;
    steer_cpu(args);
    Py_END_ALLOW_THREADS;
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

PyObject* slot_new(PyTypeObject* type, PyObject*, PyObject*) { return type->tp_alloc(type, 0); }

int slot_init(PyObject* object, PyObject* args, PyObject*) {
  PyObject *original, *slowly, *passes;
  if (!PyArg_ParseTuple(args, "OOO!", &original, &slowly, passes_type, &passes)) return -1;
  SlotObject* self = slot_of(object);
  Py_INCREF(original);
  Py_XSETREF(self->original, original);
  Py_INCREF(slowly);
  Py_XSETREF(self->slowly, slowly);
  Py_INCREF(passes);
  Py_XSETREF(self->passes, reinterpret_cast<PassesObject*>(passes));
  return 0;
}

int slot_traverse(PyObject* object, visitproc visit, void* arg) {
  SlotObject* self = slot_of(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->original);
  Py_VISIT(self->slowly);
  Py_VISIT(self->passes);
  return 0;
}

int slot_clear(PyObject* object) {
  SlotObject* self = slot_of(object);
  Py_CLEAR(self->original);
  Py_CLEAR(self->slowly);
  Py_CLEAR(self->passes);
  return 0;
}

void slot_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  slot_clear(object);
  type->tp_free(object);
  Py_DECREF(type);
}

// arm(dtype, device_type, device_id, width, operation, vectors, table, table_stride, inverse_norms,
//     rows, rows_batch, strengths, gates, gates_batch, thresholds, threads): addresses and sizes
// that stay as they are until the next arm or disarm.
PyObject* slot_arm(PyObject* object, PyObject* const* given, Py_ssize_t count) {
  constexpr int kCount = 16;
  if (count != kCount) {
    PyErr_SetString(PyExc_TypeError, "arm takes sixteen integers");
    return nullptr;
  }
  std::int64_t n[kCount];
  for (int i = 0; i < kCount; ++i) n[i] = PyLong_AsLongLong(given[i]);
  if (PyErr_Occurred()) return nullptr;
  SlotObject* self = slot_of(object);
  self->dtype = dlpack_type(static_cast<DType>(n[0]));
  self->device = DLDevice{static_cast<std::int32_t>(n[1]), static_cast<std::int32_t>(n[2])};
  self->rows_batch = n[10];
  Steer& args = self->args;
  args = Steer{};
  args.dtype = static_cast<DType>(n[0]);
  args.width = n[3];
  args.operation = static_cast<SteerOperation>(n[4]);
  args.vectors = n[5];
  args.table = reinterpret_cast<const void*>(n[6]);
  args.table_stride = n[7];
  args.inverse_norms = reinterpret_cast<const void*>(n[8]);
  args.rows = reinterpret_cast<const std::int32_t*>(n[9]);
  args.rows_stride = n[10] == 1 ? 0 : n[5];
  args.strengths = reinterpret_cast<const void*>(n[11]);
  args.strengths_stride = args.rows_stride;
  args.gates = reinterpret_cast<const std::int32_t*>(n[12]);
  args.gates_stride = n[13] == 1 ? 0 : 1;
  args.thresholds = reinterpret_cast<const void*>(n[14]);
  args.thresholds_stride = args.gates_stride;
  args.threads = static_cast<int>(n[15]);
  self->armed = true;
  Py_RETURN_NONE;
}

PyObject* slot_disarm(PyObject* object, PyObject*) {
  slot_of(object)->armed = false;
  Py_RETURN_NONE;
}

PyMethodDef slot_methods[] = {
    {"arm", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(slot_arm)), METH_FASTCALL,
     nullptr},
    {"disarm", slot_disarm, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyObject* get_off(PyObject* object, void*) { return PyBool_FromLong(slot_of(object)->off); }

int set_off(PyObject* object, PyObject* value, void*) {
  const int truth = value ? PyObject_IsTrue(value) : 0;
  if (truth < 0) return -1;
  slot_of(object)->off = truth != 0;
  return 0;
}

PyObject* get_serial(PyObject* object, void*) {
  return PyLong_FromLongLong(slot_of(object)->serial);
}

PyObject* get_armed(PyObject* object, void*) { return PyBool_FromLong(slot_of(object)->armed); }

PyGetSetDef slot_attributes[] = {
    {"off", get_off, set_off, nullptr, nullptr},
    {"armed", get_armed, nullptr, nullptr, nullptr},
    {"serial", get_serial, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyMemberDef slot_members[] = {
    {"original", T_OBJECT_EX, offsetof(SlotObject, original), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot slot_slots[] = {
    {Py_tp_call, reinterpret_cast<void*>(slot_call)},
    {Py_tp_new, reinterpret_cast<void*>(slot_new)},
    {Py_tp_init, reinterpret_cast<void*>(slot_init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(slot_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(slot_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(slot_clear)},
    {Py_tp_methods, slot_methods},
    {Py_tp_getset, slot_attributes},
    {Py_tp_members, slot_members},
    {0, nullptr},
};
PyType_Spec slot_spec = {"expertsteer._C.Slot", sizeof(SlotObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slot_slots};

// all_finite(tensor) -> True, False, or None where it is not a plain float tensor in memory
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

// The decoder's forward. Where the numbers at hand tell that a pass steers all of its tokens or
// none, it is opened here; every other pass goes to a Python function, which runs it whole.
struct DecoderSlotObject {
  PyObject_HEAD PyObject* original;
  PyObject* slowly;   // (*args, **kwargs): places the tokens and runs the pass
  PyObject* after;    // (output, kwargs, serial, ran): what is wrong with a pass that was run here
  PyObject* decoder;  // whose `training` is looked at
  PassesObject* passes;
  bool off;
  int positions;  // 0 all, 1 prompt, 2 generated, 3 last; -1 leaves every pass to Python
  std::int64_t rows_batch, slots;
};

DecoderSlotObject* decoder_of(PyObject* object) {
  return reinterpret_cast<DecoderSlotObject*>(object);
}

struct Names {
  PyObject *input_ids, *inputs_embeds, *attention_mask, *past_key_values, *get_seq_length,
      *training, *last_hidden_state;
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

// Tokens that the cache holds; -1 where it is none of transformers' or keeps that on a device.
std::int64_t cached_tokens(PyObject* kwargs) {
  PyObject* cache = given(kwargs, names.past_key_values);
  if (!cache) return PyErr_Occurred() ? -1 : 0;
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
int placed(const DecoderSlotObject* self, const OpenPass* pass, PyObject* kwargs) {
  if (pass->prompt_length >= 0) {
    const std::int64_t offset = cached_tokens(kwargs);
    if (offset >= pass->prompt_length) return self->positions == 1 ? 0 : 1;
  }
  if (self->positions != 0) return -1;
  PyObject* mask = given(kwargs, names.attention_mask);
  return !mask || pads_nothing(mask) ? 1 : -1;
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

PyObject* decoder_call(PyObject* object, PyObject* args, PyObject* kwargs) {
  DecoderSlotObject* self = decoder_of(object);
  if (self->off) return PyObject_Call(self->original, args, kwargs);
  std::int64_t batch, tokens;
  const bool plain = self->positions >= 0 && kwargs && PyTuple_GET_SIZE(args) == 0 &&
                     shape_of(kwargs, &batch, &tokens) &&
                     (self->rows_batch == 1 || self->rows_batch == batch) && !trains(self->decoder);
  OpenPass* pass = plain ? new_or_known_pass(self->passes) : nullptr;
  const int steers = plain && !pass->open ? placed(self, pass, kwargs) : -1;
  if (PyErr_Occurred()) return nullptr;
  if (steers < 0) return PyObject_Call(self->slowly, args, kwargs);
  open_pass(self->passes, pass, steers == 1, batch, tokens);
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
  return 0;
}

int decoder_clear(PyObject* object) {
  DecoderSlotObject* self = decoder_of(object);
  Py_CLEAR(self->original);
  Py_CLEAR(self->slowly);
  Py_CLEAR(self->after);
  Py_CLEAR(self->decoder);
  Py_CLEAR(self->passes);
  return 0;
}

void decoder_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  decoder_clear(object);
  type->tp_free(object);
  Py_DECREF(type);
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

PyObject* get_decoder_off(PyObject* object, void*) {
  return PyBool_FromLong(decoder_of(object)->off);
}

int set_decoder_off(PyObject* object, PyObject* value, void*) {
  const int truth = value ? PyObject_IsTrue(value) : 0;
  if (truth < 0) return -1;
  decoder_of(object)->off = truth != 0;
  return 0;
}

PyMethodDef decoder_methods[] = {
    {"expect", decoder_expect, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef decoder_attributes[] = {
    {"off", get_decoder_off, set_decoder_off, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyMemberDef decoder_members[] = {
    {"original", T_OBJECT_EX, offsetof(DecoderSlotObject, original), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};
PyType_Slot decoder_slots[] = {
    {Py_tp_call, reinterpret_cast<void*>(decoder_call)},
    {Py_tp_new, reinterpret_cast<void*>(slot_new)},
    {Py_tp_init, reinterpret_cast<void*>(decoder_init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(decoder_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(decoder_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(decoder_clear)},
    {Py_tp_methods, decoder_methods},
    {Py_tp_getset, decoder_attributes},
    {Py_tp_members, decoder_members},
    {0, nullptr},
};
PyType_Spec decoder_spec = {"expertsteer._C.DecoderSlot", sizeof(DecoderSlotObject), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                            decoder_slots};

bool intern_names() {
  names = Names{
      PyUnicode_InternFromString("input_ids"),        PyUnicode_InternFromString("inputs_embeds"),
      PyUnicode_InternFromString("attention_mask"),   PyUnicode_InternFromString("past_key_values"),
      PyUnicode_InternFromString("get_seq_length"),   PyUnicode_InternFromString("training"),
      PyUnicode_InternFromString("last_hidden_state")};
  return names.last_hidden_state != nullptr;
}

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

PyMethodDef functions[] = {
    {"set_traced_call", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(set_traced_call)),
     METH_FASTCALL, nullptr},
    {"use_tensor_type", use_tensor_type, METH_O, nullptr},
    {"all_finite", all_finite, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool define_slots(PyObject* module) {
  passes_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&passes_spec));
  PyObject* slot_type = passes_type ? PyType_FromSpec(&slot_spec) : nullptr;
  PyObject* decoder_type = slot_type ? PyType_FromSpec(&decoder_spec) : nullptr;
  if (!decoder_type || !intern_names()) return false;
  return PyModule_AddObjectRef(module, "Passes", reinterpret_cast<PyObject*>(passes_type)) == 0 &&
         PyModule_AddObjectRef(module, "Slot", slot_type) == 0 &&
         PyModule_AddObjectRef(module, "DecoderSlot", decoder_type) == 0 &&
         PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace expertsteer
