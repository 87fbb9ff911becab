#include "steer_rows.h"

#include <algorithm>

// One source, several instruction sets: the loader picks the widest the processor has, so a wheel
// built anywhere uses AVX2 or AVX-512 where they exist. What is cloned must be inlined into the
// clone, or it stays compiled for the narrowest set.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define EXPERTSTEER_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define EXPERTSTEER_INLINE inline __attribute__((always_inline))
#else
#define EXPERTSTEER_CLONES
#define EXPERTSTEER_INLINE inline
#endif

namespace expertsteer {
namespace {

template <typename Element, typename Wide>
EXPERTSTEER_INLINE void add_scaled_in(Element* row, const Wide* vector, Wide scale,
                                      std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) narrow(widen(row[i]) + scale * vector[i], row + i);
}

// Products summed in one go: four streams of as many lanes as the processor has.
constexpr std::int64_t kBlock = 1024;

template <typename T>
EXPERTSTEER_INLINE T dot_in(const T* a, const T* b, std::int64_t width) {
  T total = 0;
  for (std::int64_t start = 0; start < width; start += kBlock) {
    const std::int64_t count = std::min(kBlock, width - start), q = count / 4;
    const T *x = a + start, *y = b + start;
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (std::int64_t i = 0; i < q; ++i) {
      s0 += x[i] * y[i];
      s1 += x[i + q] * y[i + q];
      s2 += x[i + 2 * q] * y[i + 2 * q];
      s3 += x[i + 3 * q] * y[i + 3 * q];
    }
    T rest = 0;
    for (std::int64_t i = 4 * q; i < count; ++i) rest += x[i] * y[i];
    total += ((s0 + s1) + (s2 + s3)) + rest;
  }
  return total;
}

template <typename Element, typename Wide>
EXPERTSTEER_INLINE void load_in(const Element* row, std::int64_t stride, Wide* wide,
                                std::int64_t width) {
  if (stride == 1) {  // apart, because only this loop vectorises
    for (std::int64_t i = 0; i < width; ++i) wide[i] = widen(row[i]);
  } else {
    for (std::int64_t i = 0; i < width; ++i) wide[i] = widen(row[i * stride]);
  }
}

template <typename Element, typename Wide>
EXPERTSTEER_INLINE void store_in(const Wide* wide, Element* row, std::int64_t stride,
                                 std::int64_t width) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < width; ++i) narrow(wide[i], row + i);
  } else {
    for (std::int64_t i = 0; i < width; ++i) narrow(wide[i], row + i * stride);
  }
}

template <typename T>
EXPERTSTEER_INLINE void multiply_in(T* row, T factor, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) row[i] *= factor;
}

}  // namespace

#define EXPERTSTEER_ROWS(Element, Wide)                                              \
  EXPERTSTEER_CLONES void add_scaled(Element* row, const Wide* vector, Wide scale,   \
                                     std::int64_t width) {                           \
    add_scaled_in(row, vector, scale, width);                                        \
  }                                                                                  \
  EXPERTSTEER_CLONES void load(const Element* row, std::int64_t stride, Wide* wide,  \
                               std::int64_t width) {                                 \
    load_in(row, stride, wide, width);                                               \
  }                                                                                  \
  EXPERTSTEER_CLONES void store(const Wide* wide, Element* row, std::int64_t stride, \
                                std::int64_t width) {                                \
    store_in(wide, row, stride, width);                                              \
  }

EXPERTSTEER_ROWS(float, float)
EXPERTSTEER_ROWS(double, double)
EXPERTSTEER_ROWS(Float16, float)
EXPERTSTEER_ROWS(BFloat16, float)

EXPERTSTEER_CLONES float dot(const float* a, const float* b, std::int64_t width) {
  return dot_in(a, b, width);
}

EXPERTSTEER_CLONES double dot(const double* a, const double* b, std::int64_t width) {
  return dot_in(a, b, width);
}

EXPERTSTEER_CLONES void multiply(float* row, float factor, std::int64_t width) {
  multiply_in(row, factor, width);
}

EXPERTSTEER_CLONES void multiply(double* row, double factor, std::int64_t width) {
  multiply_in(row, factor, width);
}

}  // namespace expertsteer
