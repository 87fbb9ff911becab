#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "rfm.h"
#include "rfm_blocks.h"

namespace expertsteer {
namespace {

// exp(x) for x <= 0 in plain arithmetic, so that the compiler vectorises it: exp(x) = 2^k e^f with
// |f| <= ln(2) / 2, and e^f by its Taylor series to the last bit or two of the type. Results below
// the smallest normal number become zero.
EXPERTSTEER_INLINE float exp_negative(float x) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float k = std::floor(x * 1.44269504f + 0.5f);
  const float f = (x - k * kLn2High) - k * kLn2Low;
  float e = 1.0f / 5040;
  e = e * f + 1.0f / 720;
  e = e * f + 1.0f / 120;
  e = e * f + 1.0f / 24;
  e = e * f + 1.0f / 6;
  e = e * f + 0.5f;
  e = e * f + 1.0f;
  e = e * f + 1.0f;
  const bool tiny = !(k >= -125.0f);  // also a NaN, which must not reach the conversion
  const std::int32_t bits = (static_cast<std::int32_t>(tiny ? 0.0f : k) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return tiny ? (x != x ? x : 0.0f) : e * scale;
}

EXPERTSTEER_INLINE double exp_negative(double x) { return std::exp(x); }

// Some columns of one row: K into `kernel` and W into `weights`.
template <typename T>
EXPERTSTEER_CLONES void laplace_row(const T* products, T own, const T* norms, std::int64_t count,
                                    T inverse, T eps, T* kernel, T* weights) {
  for (std::int64_t j = 0; j < count; ++j) {
    // In units of the bandwidth L: D / L. W = K / (L D) = K / (L^2 (D / L)).
    const T scaled = std::sqrt(squared_distance(own, norms[j], products[j])) * inverse;
    const T k = exp_negative(-scaled);
    kernel[j] = k;
    weights[j] = scaled < eps ? T(0) : k * inverse / scaled * inverse;
  }
}

template <typename T>
void laplace_block(const T* gram, const T* norms, std::int64_t n, std::int64_t block, T bandwidth,
                   T eps, T* kernel, T* weights) {
  const std::int64_t first = block * kTile, stop = std::min(n, first + kTile);
  T dropped[kTile];
  for (std::int64_t column = 0; column < stop; column += kTile) {
    const std::int64_t end = std::min(stop, column + kTile);
    for (std::int64_t i = first; i < stop; ++i) {
      const std::int64_t count = std::min(end, i) - column;  // strictly below the diagonal
      if (count > 0)
        laplace_row(gram + i * n + column, norms[i], norms + column, count, T(1) / bandwidth, eps,
                    kernel + i * n + column, weights ? weights + i * n + column : dropped);
    }
    for (std::int64_t j = column; weights && j < end; ++j)  // the mirror image of a cached tile
      for (std::int64_t i = std::max(first, j + 1); i < stop; ++i)
        weights[j * n + i] = weights[i * n + j];
  }
  for (std::int64_t i = first; i < stop; ++i) {
    kernel[i * n + i] = 1;
    if (weights) weights[i * n + i] = 0;
  }
}

template <typename T>
EXPERTSTEER_CLONES T transform_row(const T* weights, const T* alpha, std::int64_t n, T* out) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < n; ++j) {
    const T product = weights[j] * alpha[j];
    out[j] = -product;
    sum += product;
  }
  return sum;
}

template <typename T>
void mirror_block(T* matrix, std::int64_t n, std::int64_t block) {
  const std::int64_t first = block * kTile, stop = std::min(n, first + kTile);
  for (std::int64_t column = 0; column < stop; column += kTile)
    for (std::int64_t j = column; j < std::min(stop, column + kTile); ++j)
      for (std::int64_t i = std::max(first, j + 1); i < stop; ++i)
        matrix[j * n + i] = matrix[i * n + j];
}

}  // namespace

template <typename T>
void laplace(const T* gram, std::int64_t n, T bandwidth, T eps, T* kernel, T* weights,
             int threads) {
  const std::vector<T> norms = diagonal(gram, n);
  for_blocks(tiles(n), n * n / 2, threads, [&](std::int64_t b) {
    laplace_block(gram, norms.data(), n, b, bandwidth, eps, kernel, weights);
  });
}

template <typename T>
void gradient_transform(const T* weights, const T* alpha, std::int64_t n, T* transform, T* sums,
                        int threads) {
  for_blocks(tiles(n), n * n, threads, [&](std::int64_t b) {
    for (std::int64_t i = b * kTile; i < std::min(n, (b + 1) * kTile); ++i) {
      sums[i] = transform_row(weights + i * n, alpha, n, transform + i * n);
      transform[i * n + i] = sums[i];
    }
  });
}

template <typename T>
void mirror_lower(T* matrix, std::int64_t n, int threads) {
  for_blocks(tiles(n), n * n / 2, threads, [&](std::int64_t b) { mirror_block(matrix, n, b); });
}

#define EXPERTSTEER_INSTANTIATE(T)                                                    \
  template void laplace<T>(const T*, std::int64_t, T, T, T*, T*, int);                \
  template void gradient_transform<T>(const T*, const T*, std::int64_t, T*, T*, int); \
  template void mirror_lower<T>(T*, std::int64_t, int);
EXPERTSTEER_INSTANTIATE(float)
EXPERTSTEER_INSTANTIATE(double)

}  // namespace expertsteer
