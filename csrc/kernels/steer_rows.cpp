#include "steer_rows.h"

#include <algorithm>

#include "clones.h"

// As in ksg_cpu.cpp: vector types are lowered before target_clones would clone them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EXPERTSTEER_DISPATCH
#include <immintrin.h>
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

#ifdef EXPERTSTEER_DISPATCH
// GCC does not vectorise the conversions of half types well, so these have rows of their own.
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
namespace avx2 {
typedef __m128i HalfRegister;
typedef __m256i WordRegister;
typedef __m256 FloatRegister;
inline WordRegister to_words(HalfRegister halves) { return _mm256_cvtepu16_epi32(halves); }
inline HalfRegister to_low_halves(WordRegister words) {  // of words below 2^16
  const WordRegister packed = _mm256_packus_epi32(words, words);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x8));
}
inline FloatRegister float16_to_floats(HalfRegister halves) { return _mm256_cvtph_ps(halves); }
inline HalfRegister floats_to_float16(FloatRegister values) {
  return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
}
#include "steer_rows.inl"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
typedef __m256i HalfRegister;
typedef __m512i WordRegister;
typedef __m512 FloatRegister;
constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of the conversions without a mask
inline WordRegister to_words(HalfRegister halves) {
  return _mm512_maskz_cvtepu16_epi32(kAll, halves);
}
inline HalfRegister to_low_halves(WordRegister words) {
  return _mm512_maskz_cvtepi32_epi16(kAll, words);
}
inline FloatRegister float16_to_floats(HalfRegister halves) {
  return _mm512_maskz_cvtph_ps(kAll, halves);
}
inline HalfRegister floats_to_float16(FloatRegister values) {
  return _mm512_maskz_cvtps_ph(kAll, values, _MM_FROUND_TO_NEAREST_INT);
}
#include "steer_rows.inl"
}  // namespace avx512
#pragma GCC pop_options

bool has_avx512() {
  __builtin_cpu_init();  // this may run before the library that fills the answers is ready
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
}

const bool kHasAvx512 = has_avx512(), kHasAvx2 = has_avx2();

// Calls the widest version of a function of steer_rows.inl that the processor has.
#define EXPERTSTEER_WIDEST(call)       \
  if (kHasAvx512) return avx512::call; \
  if (kHasAvx2) return avx2::call;
#else
#define EXPERTSTEER_WIDEST(call)
#endif

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

#define EXPERTSTEER_HALF_ROWS(Half)                                                   \
  void add_scaled(Half* row, const float* vector, float scale, std::int64_t width) {  \
    EXPERTSTEER_WIDEST(add_scaled_lanes(row, vector, scale, width))                   \
    add_scaled_in(row, vector, scale, width);                                         \
  }                                                                                   \
  void load(const Half* row, std::int64_t stride, float* wide, std::int64_t width) {  \
    if (stride == 1) {                                                                \
      EXPERTSTEER_WIDEST(load_lanes(row, wide, width))                                \
    }                                                                                 \
    load_in(row, stride, wide, width);                                                \
  }                                                                                   \
  void store(const float* wide, Half* row, std::int64_t stride, std::int64_t width) { \
    if (stride == 1) {                                                                \
      EXPERTSTEER_WIDEST(store_lanes(wide, row, width))                               \
    }                                                                                 \
    store_in(wide, row, stride, width);                                               \
  }

EXPERTSTEER_HALF_ROWS(Float16)
EXPERTSTEER_HALF_ROWS(BFloat16)

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
