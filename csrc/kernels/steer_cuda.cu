#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

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

// One block steers whole rows, each read once from memory: where products with vectors are needed,
// the row waits in shared memory, or in the cache when it is too wide. A masked row costs one byte
// read.

constexpr int kThreads = 256;
// At least so many on a multiprocessor at a time: registers enough that nothing spills.
constexpr int kBlocks = 3;
constexpr std::size_t kShared = 48 * 1024 - 256;  // dynamic, what every device offers unasked

#include "steer_row.inl"

// What the tokens of one sequence are steered with; all threads of a block agree on it.
template <typename Wide>
struct Choice {
  const std::int32_t* rows;
  const Wide *strengths, *inverse_norms;
  bool clamps;
  std::int32_t gate;
  Wide threshold;

  __device__ Choice(const Steer& a, std::int64_t b)
      : rows(a.rows + b * a.rows_stride),
        strengths(static_cast<const Wide*>(a.strengths) + b * a.strengths_stride),
        inverse_norms(static_cast<const Wide*>(a.inverse_norms)),
        clamps(a.operation == SteerOperation::kClamp),
        gate(a.gates ? a.gates[b * a.gates_stride] : 0),
        threshold(gate ? static_cast<const Wide*>(a.thresholds)[b * a.thresholds_stride] : 0) {}

  __device__ bool uses(std::int64_t s) const {
    return rows[s] != 0 && (clamps || strengths[s] != 0);
  }
};

template <typename Element, typename Wide, int kChunk>
__device__ __forceinline__ void add(Row<Element, Wide, kChunk>& row, const Choice<Wide>& choice,
                                    Wide* factors, bool keeps_norm) {
  const std::int64_t vectors = row.a.vectors;
  for (std::int64_t s = threadIdx.x; s < vectors; s += blockDim.x) {
    factors[s] = choice.uses(s) ? choice.strengths[s] : Wide(0);
  }
  __syncthreads();
  if (!keeps_norm) return row.finish(0, vectors, Wide(1));
  const Wide before = row.norm(0, 0), after = row.norm(0, vectors);
  const bool rescales = isfinite(before) && isfinite(after) && after > 0;
  row.finish(row.kept ? vectors : 0, vectors, rescales ? before / after : Wide(1));
}

template <typename Element, typename Wide, int kChunk>
__device__ __forceinline__ void move_along(Row<Element, Wide, kChunk>& row,
                                           const Choice<Wide>& choice, Wide* factors) {
  std::int64_t begin = 0;  // the first vector that the row does not remember
  bool moves = false;
  for (std::int64_t s = 0; s < row.a.vectors; ++s) {
    const Wide inverse = choice.uses(s) ? choice.inverse_norms[choice.rows[s]] : Wide(0);
    Wide factor = 0;
    if (inverse != 0) {
      const Wide component = row.dot(row.vector(choice.rows[s]), begin, s) * inverse;
      if (row.kept) begin = s;
      const Wide move =
          choice.clamps ? choice.strengths[s] - component : -(choice.strengths[s] * component);
      if (isfinite(component)) factor = move * inverse;  // a NaN stays where it is
    }
    moves |= factor != 0;
    if (threadIdx.x == 0) factors[s] = factor;
    __syncthreads();
  }
  if (moves) row.finish(begin, row.a.vectors, Wide(1));
}

template <typename Wide>
__host__ __device__ std::size_t factor_bytes(std::int64_t vectors) {
  return (vectors * sizeof(Wide) + 15) / 16 * 16;
}

// Calls steer(row, choice) for every row of this block that may change.
template <typename Element, typename Wide, int kChunk, typename Use>
__device__ __forceinline__ void each_row(const Steer& a, Wide* factors, Wide* kept,
                                         const Use& steer) {
  for (std::int64_t r = blockIdx.x; r < a.batch * a.tokens; r += gridDim.x) {
    const std::int64_t b = r / a.tokens, t = r % a.tokens;
    if (a.mask && !a.mask[b * a.mask_batch_stride + t * a.mask_token_stride]) continue;
    const Choice<Wide> choice(a, b);
    bool changes = false;
    for (std::int64_t s = 0; s < a.vectors; ++s) changes |= choice.uses(s);
    if (!changes) continue;
    __syncthreads();  // the factors of the last row have been read
    Element* hidden = static_cast<Element*>(a.hidden) + b * a.batch_stride + t * a.token_stride;
    Row<Element, Wide, kChunk> row{a, hidden, choice.rows, factors, kept, false};
    steer(row, choice);
  }
}

// An ungated addition needs no product with the row, so few registers and all of the bandwidth.
template <typename Element, typename Wide, int kChunk>
__global__ void __launch_bounds__(kThreads, kBlocks + 1) add_kernel(const Steer a) {
  extern __shared__ __align__(16) unsigned char shared[];
  Wide* factors = reinterpret_cast<Wide*>(shared);
  each_row<Element, Wide, kChunk>(
      a, factors, static_cast<Wide*>(nullptr),
      [&](auto& row, const Choice<Wide>& choice) { add(row, choice, factors, false); });
}

template <typename Element, typename Wide, int kChunk>
__global__ void __launch_bounds__(kThreads, kBlocks) steer_kernel(const Steer a, bool keeps) {
  extern __shared__ __align__(16) unsigned char shared[];
  Wide* factors = reinterpret_cast<Wide*>(shared);
  Wide* kept = keeps ? reinterpret_cast<Wide*>(shared + factor_bytes<Wide>(a.vectors)) : nullptr;
  each_row<Element, Wide, kChunk>(a, factors, kept, [&](auto& row, const Choice<Wide>& choice) {
    const Wide inverse = choice.gate ? choice.inverse_norms[choice.gate] : Wide(0);
    if (inverse != 0) {
      const Wide component = row.dot(row.vector(choice.gate), 0, 0) * inverse;
      if (!(component > choice.threshold)) return;
    }
    if (a.operation == SteerOperation::kAdd || a.operation == SteerOperation::kAddKeepNorm) {
      add(row, choice, factors, a.operation == SteerOperation::kAddKeepNorm);
    } else {
      move_along(row, choice, factors);
    }
  });
}

bool is_aligned(const Steer& a, std::size_t element, std::size_t wide) {
  const auto aligned = [](const void* pointer, std::size_t step) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 && step % 16 == 0;
  };
  return a.element_stride == 1 && aligned(a.hidden, a.batch_stride * element) &&
         a.token_stride * element % 16 == 0 && aligned(a.table, a.table_stride * wide);
}

template <typename Element, typename Wide, int kChunk>
void launch_steer(const Steer& a, cudaStream_t stream) {
  const std::int64_t rows = a.batch * a.tokens, chunks = (a.width + kChunk - 1) / kChunk;
  const int blocks = static_cast<int>(rows < 65535 ? rows : 65535);
  const int threads = chunks < kThreads ? static_cast<int>((chunks + 31) / 32 * 32) : kThreads;
  std::size_t bytes = factor_bytes<Wide>(a.vectors);
  if (a.operation == SteerOperation::kAdd && !a.gates) {
    add_kernel<Element, Wide, kChunk><<<blocks, threads, bytes, stream>>>(a);
    return;
  }
  const bool keeps = bytes + a.width * sizeof(Wide) <= kShared;
  if (keeps) bytes += a.width * sizeof(Wide);
  steer_kernel<Element, Wide, kChunk><<<blocks, threads, bytes, stream>>>(a, keeps);
}

template <typename Element, typename Wide>
const char* launch_steer(const Steer& a, cudaStream_t stream) {
  if (factor_bytes<Wide>(a.vectors) > kShared) return "too many vectors per sequence";
  constexpr int kChunk = 16 / sizeof(Element);
  if (is_aligned(a, sizeof(Element), sizeof(Wide))) {
    launch_steer<Element, Wide, kChunk>(a, stream);
  } else {
    launch_steer<Element, Wide, 1>(a, stream);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* steer_cuda(const Steer& args, void* stream) {
  if (args.batch * args.tokens * args.width == 0) return nullptr;
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::kFloat32:
      return launch_steer<float, float>(args, s);
    case DType::kFloat64:
      return launch_steer<double, double>(args, s);
    case DType::kFloat16:
      return launch_steer<__half, float>(args, s);
    case DType::kBFloat16:
      return launch_steer<__nv_bfloat16, float>(args, s);
  }
  return "unknown dtype";
}

const char* steer_cuda_on(const Steer& args, int device, void* stream) {
  int before = device;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const char* failed = steer_cuda(args, stream);
  if (before != device) cudaSetDevice(before);
  return failed;
}

}  // namespace expertsteer
