#include <algorithm>
#include <cmath>
#include <vector>

#include "clones.h"
#include "gaussian.h"
#include "share_out.h"

namespace expertsteer {
namespace {

constexpr std::int64_t kSerial = 4096;  // pairs below which starting threads costs more

// 1 - R R^T in `matrix` [r, r] from R^T [s, r]: rank-one updates of whole rows, which vectorise.
EXPERTSTEER_CLONES void complement(const float* transposed, std::int64_t stride, std::int64_t r,
                                   std::int64_t s, float* matrix) {
  std::fill(matrix, matrix + r * r, 0.0f);
  for (std::int64_t i = 0; i < r; ++i) matrix[i * r + i] = 1.0f;
  for (std::int64_t k = 0; k < s; ++k) {
    const float* column = transposed + k * stride;
    for (std::int64_t i = 0; i < r; ++i) {
      const float scale = column[i];
      float* row = matrix + i * r;
      for (std::int64_t j = 0; j < r; ++j) row[j] -= scale * column[j];
    }
  }
}

// Eliminates `matrix` in place; returns the sum of the pivots' logarithms and the smallest pivot.
EXPERTSTEER_CLONES double eliminate(float* matrix, std::int64_t r, float* smallest) {
  double sum = 0;
  float least = matrix[0];
  for (std::int64_t k = 0; k < r; ++k) {
    const float pivot = matrix[k * r + k];
    least = pivot < least || pivot != pivot ? pivot : least;
    if (!(pivot > 0)) break;  // the caller does this pair again, in double precision
    sum += std::log(static_cast<double>(pivot));
    const float* own = matrix + k * r;
    for (std::int64_t i = k + 1; i < r; ++i) {
      const float scale = own[i] / pivot;
      float* row = matrix + i * r;
      for (std::int64_t j = k + 1; j < r; ++j) row[j] -= scale * own[j];
    }
  }
  *smallest = least;
  return sum;
}

// The default number of components: two registers of one row, so sizes are known when compiling.
constexpr int kFixed = 32, kLanes = 16;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

EXPERTSTEER_INLINE Floats* registers(float* row) { return reinterpret_cast<Floats*>(row); }

// Rows [First, First + Rows) of -R R^T, its columns from `Skip` registers on, summed in registers.
template <int First, int Rows, int Skip>
EXPERTSTEER_INLINE void minus_square(const float* transposed, std::int64_t stride, std::int64_t s,
                                     float* matrix) {
  Floats sums[Rows][2 - Skip] = {};
  for (std::int64_t k = 0; k < s; ++k) {
    const float* column = transposed + k * stride;
    for (int i = 0; i < Rows; ++i)
      for (int c = Skip; c < 2; ++c)
        sums[i][c - Skip] -=
            column[First + i] * *reinterpret_cast<const Floats*>(column + c * kLanes);
  }
  for (int i = 0; i < Rows; ++i)
    for (int c = Skip; c < 2; ++c) registers(matrix + (First + i) * kFixed)[c] = sums[i][c - Skip];
}

// Takes row k, by its own entries over the pivot, from the rows [first, stop): from register `Skip`
// on.
template <int Skip>
EXPERTSTEER_INLINE void take_from_rows(float* matrix, int k, int first, int stop, float inverse) {
  float* own = matrix + k * kFixed;
  for (int i = first; i < stop; ++i)
    for (int c = Skip; c < 2; ++c)
      registers(matrix + i * kFixed)[c] -= (own[i] * inverse) * registers(own)[c];
}

// `complement` and `eliminate` for r = 32, no more than the upper triangle of either.
EXPERTSTEER_CLONES double information_of_32(const float* transposed, std::int64_t stride,
                                            std::int64_t s, float* matrix, float* smallest) {
  minus_square<0, 8, 0>(transposed, stride, s, matrix);
  minus_square<8, 8, 0>(transposed, stride, s, matrix);
  minus_square<16, 16, 1>(transposed, stride, s, matrix);
  for (int i = 0; i < kFixed; ++i) matrix[i * kFixed + i] += 1.0f;
  double sum = 0, product = 1;
  float least = matrix[0];
  for (int k = 0; k < kFixed; ++k) {
    const float pivot = matrix[k * kFixed + k], inverse = 1 / pivot;
    least = pivot < least || pivot != pivot ? pivot : least;
    if (!(pivot > 0)) break;  // the caller does this pair again, in double precision
    product *= pivot;
    if (k % 4 == 3) {  // four pivots cannot leave the range of doubles
      sum += std::log(product);
      product = 1;
    }
    if (k < kLanes) take_from_rows<0>(matrix, k, k + 1, kLanes, inverse);
    take_from_rows<1>(matrix, k, std::max(k + 1, kLanes), kFixed, inverse);
  }
  *smallest = least;
  return sum;
}

}  // namespace

void log_determinants_cpu(const LogDeterminants& args, int threads) {
  const std::int64_t r = args.r, s = args.s, stride = args.rows * r;
  if (args.rows * args.columns < kSerial) threads = 1;
  share_out(args.rows, threads, [&](std::int64_t a) {
    std::vector<float> matrix(r * r);
    for (std::int64_t b = 0; b < args.columns; ++b) {
      const std::int64_t place = a * args.columns + b;
      const float* block = args.product + b * s * stride + a * r;
      float* smallest = args.smallest + place;
      if (r == kFixed) {
        args.nats[place] = -0.5 * information_of_32(block, stride, s, matrix.data(), smallest);
        continue;
      }
      complement(block, stride, r, s, matrix.data());
      args.nats[place] = -0.5 * eliminate(matrix.data(), r, smallest);
    }
  });
}

}  // namespace expertsteer
