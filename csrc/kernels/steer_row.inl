// One row of hidden states on a GPU, and how a block of threads sweeps over it. Included by
// steer_cuda.cu inside its namespace.

// Rounded after the product and after the sum, as the reference does; nvcc would contract them.
__device__ __forceinline__ float plus_product(float sum, float a, float b) {
  return __fadd_rn(sum, __fmul_rn(a, b));
}
__device__ __forceinline__ double plus_product(double sum, double a, double b) {
  return __dadd_rn(sum, __dmul_rn(a, b));
}

// Copy kCount values, 16 bytes at a time where they fill that; both ends are then aligned.
template <int kCount, typename T>
__device__ __forceinline__ void read(const T* memory, T* values) {
  if constexpr (kCount * sizeof(T) % 16 == 0) {
#pragma unroll
    for (std::size_t i = 0; i < kCount * sizeof(T) / 16; ++i) {
      const uint4 bytes = reinterpret_cast<const uint4*>(memory)[i];
      memcpy(values + i * (16 / sizeof(T)), &bytes, 16);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = memory[i];
  }
}

template <int kCount, typename T>
__device__ __forceinline__ void write(const T* values, T* memory) {
  if constexpr (kCount * sizeof(T) % 16 == 0) {
#pragma unroll
    for (std::size_t i = 0; i < kCount * sizeof(T) / 16; ++i) {
      uint4 bytes;
      memcpy(&bytes, values + i * (16 / sizeof(T)), 16);
      reinterpret_cast<uint4*>(memory)[i] = bytes;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) memory[i] = values[i];
  }
}

// The sum over a block, given to every thread.
template <typename Wide>
__device__ __forceinline__ Wide block_sum(Wide value) {
  __shared__ Wide parts[kThreads / 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();  // the parts of an earlier sum have been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) value += parts[w];
  return value;
}

// One row of the hidden states, kChunk elements at a time, shared out among the block's threads.
template <typename Element, typename Wide, int kChunk>
struct Row {
  const Steer& a;
  Element* hidden;
  const std::int32_t* rows;
  const Wide* factors;  // [vectors], in shared memory: how much of each vector is added
  Wide* kept;           // [width], in shared memory: the row so far; null where it is too wide
  bool is_kept;         // something is in `kept`

  __device__ __forceinline__ const Wide* vector(std::int32_t row) const {
    return static_cast<const Wide*>(a.table) + row * a.table_stride;
  }

  // Calls use(values, first, count) for every chunk of this thread, after adding the vectors
  // [begin, end) times their factors. A kept row remembers what was added.
  template <typename Use>
  __device__ __forceinline__ void sweep(std::int64_t begin, std::int64_t end, const Use& use) {
    const std::int64_t chunks = a.width / kChunk;
    for (std::int64_t c = threadIdx.x; c < chunks; c += blockDim.x) {
      visit<kChunk>(c * kChunk, begin, end, use);
    }
    if constexpr (kChunk > 1) {
      for (std::int64_t i = chunks * kChunk + threadIdx.x; i < a.width; i += blockDim.x) {
        visit<1>(i, begin, end, use);
      }
    }
    is_kept = kept != nullptr;
  }

  template <int kCount, typename Use>
  __device__ __forceinline__ void visit(std::int64_t i, std::int64_t begin, std::int64_t end,
                                        const Use& use) {
    Wide values[kCount];
    if (is_kept) {
      read<kCount>(kept + i, values);
    } else {
      load<kCount>(i, values);
    }
    if (begin < end) {
      Wide sum[kCount] = {};
      for (std::int64_t s = begin; s < end; ++s) {
        const Wide factor = factors[s];
        if (factor == 0) continue;
        Wide other[kCount];
        read<kCount>(vector(rows[s]) + i, other);
#pragma unroll
        for (int j = 0; j < kCount; ++j) sum[j] = plus_product(sum[j], factor, other[j]);
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] += sum[j];
    }
    if (kept) write<kCount>(values, kept + i);
    use(values, i, std::integral_constant<int, kCount>());
  }

  template <int kCount>
  __device__ __forceinline__ void load(std::int64_t i, Wide* values) const {
    Element narrow_values[kCount];
    if constexpr (kCount == 1) {
      narrow_values[0] = hidden[i * a.element_stride];
    } else {
      read<kCount>(hidden + i, narrow_values);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) values[j] = widen(narrow_values[j]);
  }

  template <int kCount>
  __device__ __forceinline__ void store(std::int64_t i, const Wide* values) const {
    Element narrow_values[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) narrow(values[j], narrow_values + j);
    if constexpr (kCount == 1) {
      hidden[i * a.element_stride] = narrow_values[0];
    } else {
      write<kCount>(narrow_values, hidden + i);
    }
  }

  __device__ __forceinline__ Wide dot(const Wide* other, std::int64_t begin, std::int64_t end) {
    Wide sum = 0;
    sweep(begin, end, [&](const Wide* values, std::int64_t i, auto count) {
      Wide others[count.value];
      read<count.value>(other + i, others);
#pragma unroll
      for (int j = 0; j < count.value; ++j) sum += values[j] * others[j];
    });
    return block_sum(sum);
  }

  __device__ __forceinline__ Wide norm(std::int64_t begin, std::int64_t end) {
    Wide sum = 0;
    sweep(begin, end, [&](const Wide* values, std::int64_t, auto count) {
#pragma unroll
      for (int j = 0; j < count.value; ++j) sum += values[j] * values[j];
    });
    return sqrt(block_sum(sum));
  }

  // The last sweep: writes the row, times a factor.
  __device__ __forceinline__ void finish(std::int64_t begin, std::int64_t end, Wide factor) {
    sweep(begin, end, [&](Wide* values, std::int64_t i, auto count) {
#pragma unroll
      for (int j = 0; j < count.value; ++j) values[j] *= factor;
      store<count.value>(i, values);
    });
  }
};
