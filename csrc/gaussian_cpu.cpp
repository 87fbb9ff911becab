#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "gaussian.h"

// One source, several instruction sets, as in steer_cpu.cpp.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define EXPERTSTEER_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define EXPERTSTEER_CLONES
#endif

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

}  // namespace

void log_determinants_cpu(const LogDeterminants& args, int threads) {
  const std::int64_t pairs = args.rows * args.columns;
  std::atomic<std::int64_t> next{0};
  auto run = [&] {
    std::vector<float> matrix(args.r * args.r);
    for (std::int64_t a; (a = next.fetch_add(1)) < args.rows;)
      for (std::int64_t b = 0; b < args.columns; ++b) {
        const std::int64_t stride = args.rows * args.r, place = a * args.columns + b;
        complement(args.product + b * args.s * stride + a * args.r, stride, args.r, args.s,
                   matrix.data());
        args.nats[place] = -0.5 * eliminate(matrix.data(), args.r, args.smallest + place);
      }
  };
  std::vector<std::thread> pool;
  if (pairs >= kSerial)
    for (int t = 1; t < std::min<std::int64_t>(threads, args.rows); ++t) pool.emplace_back(run);
  run();
  for (auto& thread : pool) thread.join();
}

}  // namespace expertsteer
