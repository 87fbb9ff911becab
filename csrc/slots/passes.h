// The forward passes that are open, one per thread: what the decoder's slot tells the layers'.
#pragma once

#include <Python.h>

#include <cstdint>
#include <list>

#include "dlpack_view.h"

namespace expertsteer {

// What the forward pass that is open in one thread told all slots.
struct OpenPass {
  unsigned long thread = 0;
  std::int64_t prompt_length = -1;  // of the running `generate`, -1 where no pass has shown it
  const void* cache = nullptr;      // of its text: only passes over it are placed by that length
  std::int64_t quick = 0;           // passes since the last tally that Python did not open
  std::int64_t end = -1;            // of the last of them, in tokens; -1 where no cache was asked
  bool chose = false;               // whether any of them steered
  bool open = false;
  bool steers = false;       // any token at all
  PyObject* held = nullptr;  // the mask's tensor
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

// Of the calling thread; null where it has opened none yet.
OpenPass* pass_of_this_thread(PassesObject* self);
OpenPass* new_or_known_pass(PassesObject* self);

void open_pass(PassesObject* self, OpenPass* pass, bool steers, std::int64_t batch,
               std::int64_t tokens);

// Whether a tensor holds nothing but finite numbers: True, False, or None where that is not told by
// its memory. A method of the module.
PyObject* all_finite(PyObject* module, PyObject* tensor);

// Of a type whose `clear` lets go of all that an object of it holds.
template <inquiry clear>
void dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  clear(object);
  type->tp_free(object);
  Py_DECREF(type);
}

// The types; null with an error set. `passes_type` is what `define_passes` made.
extern PyTypeObject* passes_type;
PyTypeObject* define_passes();
PyObject* define_decoder_slot();

}  // namespace expertsteer
