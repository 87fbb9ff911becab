// Activation injection: h <- h + delta, in place, for the rows a mask selects.
//
// Framework-free: raw pointers, sizes and strides (counted in elements) in, nothing allocated,
// nothing synchronised. Callers validate; these functions trust what they are given.
#pragma once

#include <cstdint>

namespace expertsteer {

enum class DType : std::int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

struct SteerAdd {
  void* hidden;  // [batch, tokens, width], rows contiguous
  DType dtype;   // of hidden
  std::int64_t batch, tokens, width;
  std::int64_t batch_stride, token_stride;
  const void* delta;         // [width], double for a float64 hidden, else float; added in that type
  const std::uint8_t* mask;  // [batch, tokens], null for every row
  std::int64_t mask_batch_stride, mask_token_stride;
};

void steer_add_cpu(const SteerAdd& args);

#ifdef EXPERTSTEER_WITH_CUDA
// Runs on the caller's stream and current device. Returns null, or the launch error's text.
const char* steer_add_cuda(const SteerAdd& args, void* stream);
#endif

}  // namespace expertsteer
