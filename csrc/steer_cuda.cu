#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "steer.h"

namespace expertsteer {
namespace {

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ inline void narrow(float v, float* out) { *out = v; }
__device__ inline void narrow(double v, double* out) { *out = v; }
__device__ inline void narrow(float v, __half* out) { *out = __float2half_rn(v); }
__device__ inline void narrow(float v, __nv_bfloat16* out) { *out = __float2bfloat16_rn(v); }

// One block walks whole rows; a masked row costs one byte read.
template <typename Element, typename Delta>
__global__ void steer_add_kernel(SteerAdd a) {
  Element* hidden = static_cast<Element*>(a.hidden);
  const Delta* delta = static_cast<const Delta*>(a.delta);
  for (std::int64_t r = blockIdx.x; r < a.batch * a.tokens; r += gridDim.x) {
    const std::int64_t b = r / a.tokens, t = r % a.tokens;
    if (a.mask && !a.mask[b * a.mask_batch_stride + t * a.mask_token_stride]) continue;
    Element* row = hidden + b * a.batch_stride + t * a.token_stride;
    for (std::int64_t i = threadIdx.x; i < a.width; i += blockDim.x) {
      narrow(widen(row[i]) + delta[i], row + i);
    }
  }
}

template <typename Element, typename Delta>
void launch(const SteerAdd& a, cudaStream_t stream) {
  const std::int64_t rows = a.batch * a.tokens;
  const int blocks = static_cast<int>(rows < 65535 ? rows : 65535);
  steer_add_kernel<Element, Delta><<<blocks, 256, 0, stream>>>(a);
}

}  // namespace

const char* steer_add_cuda(const SteerAdd& args, void* stream) {
  if (args.batch * args.tokens * args.width == 0) return nullptr;
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::kFloat32:
      launch<float, float>(args, s);
      break;
    case DType::kFloat64:
      launch<double, double>(args, s);
      break;
    case DType::kFloat16:
      launch<__half, float>(args, s);
      break;
    case DType::kBFloat16:
      launch<__nv_bfloat16, float>(args, s);
      break;
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace expertsteer
