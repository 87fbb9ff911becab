// Steering of hidden states in place, by a table of vectors.
//
// Framework-free: raw pointers, sizes and strides (counted in elements) in, nothing synchronised,
// nothing allocated beyond one row per thread that is kept. Callers validate; these functions
// trust what they are given.
#pragma once

#include <cstdint>

namespace expertsteer {

enum class DType : std::int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

enum class SteerOperation : std::int32_t { kAdd = 0, kAddKeepNorm = 1, kRemove = 2, kClamp = 3 };

// ops/steering/reference.py defines the operations. "wide" is double for a float64 hidden, else
// float. A stride of 0 between sequences lets all of them share one entry.
struct Steer {
  void* hidden;  // [batch, tokens, width]; no two elements may share an address
  DType dtype;   // of hidden
  std::int64_t batch, tokens, width;
  std::int64_t batch_stride, token_stride, element_stride;
  SteerOperation operation;
  std::int64_t vectors;       // per sequence
  const void* table;          // wide [rows, width], contiguous rows; row 0 means "no vector"
  std::int64_t table_stride;  // between rows
  // wide [rows], 1 / |row|, 0 for a zero row; null is allowed for kAdd and kAddKeepNorm without
  // gates
  const void* inverse_norms;
  const std::int32_t* rows;  // [batch, vectors], each within the table
  std::int64_t rows_stride;
  const void* strengths;  // wide [batch, vectors]
  std::int64_t strengths_stride;
  const std::uint8_t* mask;  // [batch, tokens], null for every token
  std::int64_t mask_batch_stride, mask_token_stride;
  const std::int32_t* gates;  // [batch] rows of the table, null for none
  std::int64_t gates_stride;
  const void* thresholds;  // wide [batch], null without gates
  std::int64_t thresholds_stride;
  int threads;  // at most so many, and only where the work is large
};

void steer_cpu(const Steer& args);

#ifdef EXPERTSTEER_WITH_CUDA
// Run on the caller's stream and current device; they may be captured in a graph. Return null, or
// the launch error's text.
const char* steer_cuda(const Steer& args, void* stream);
// The same on that device, whichever is current.
const char* steer_cuda_on(const Steer& args, int device, void* stream);
#endif

}  // namespace expertsteer
