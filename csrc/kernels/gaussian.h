// Gaussian information of every pair of layers from the product of their whitened codes.
//
// Framework-free, as everything in csrc/kernels: pointers and sizes in, one small buffer per
// thread.
#pragma once

#include <cstdint>

namespace expertsteer {

struct Whiten {
  const double* codes;  // [layers, n, r], row-major
  std::int64_t layers, n, r;
  float* whitened;  // [layers, r, n], centred, orthonormal along n; undefined where it failed
};

// Whether every covariance had a Cholesky factor.
bool whiten_cpu(const Whiten& args, int threads);

struct LogDeterminants {
  // [columns * s, rows * r], row-major: block (b, a) is the transposed correlation of layers a and
  // b.
  const float* product;
  std::int64_t rows, columns, r, s;
  double* nats;  // [rows, columns], -1/2 log det(1 - R R^T), written
  float*
      smallest;  // [rows, columns], the smallest pivot 1 - ..., at most 0 or NaN where none exists
};

void log_determinants_cpu(const LogDeterminants& args, int threads);

}  // namespace expertsteer
