#include <cstring>

#include "steer.h"

// One source, several instruction sets: the loader picks the widest the processor has, so a wheel
// built anywhere uses AVX2 or AVX-512 where they exist.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define EXPERTSTEER_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EXPERTSTEER_CLONES
#endif

namespace expertsteer {
namespace {

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float bfloat16_to_float(std::uint16_t half) {
  return float_of(static_cast<std::uint32_t>(half) << 16);
}

// Round to nearest even, NaN kept quiet: what torch does.
inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(is_nan ? ((bits >> 16) | 0x40u) : rounded);
}

inline float float16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity and NaN keep their payload
    return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // A float whose exponent is biased like the half's, rescaled by 2^112: exact, subnormals
  // included.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

// Round to nearest even. Adding a power of two whose last mantissa bit is the half's last bit lets
// the floating-point unit do the rounding, for normal and subnormal results alike.
inline std::uint16_t float_to_float16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude < 0x38800000u) {  // below the smallest normal half, 2^-14
    const float shifted = float_of(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_of(shifted) - bits_of(0.5f)));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  const std::uint32_t rounded = magnitude - 0x38000000u + 0xfffu + odd;
  return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

EXPERTSTEER_CLONES
void add_row(float* row, const float* delta, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) row[i] += delta[i];
}

EXPERTSTEER_CLONES
void add_row(double* row, const double* delta, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) row[i] += delta[i];
}

EXPERTSTEER_CLONES
void add_row_bfloat16(std::uint16_t* row, const float* delta, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    row[i] = float_to_bfloat16(bfloat16_to_float(row[i]) + delta[i]);
  }
}

EXPERTSTEER_CLONES
void add_row_float16(std::uint16_t* row, const float* delta, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    row[i] = float_to_float16(float16_to_float(row[i]) + delta[i]);
  }
}

template <typename Element, typename Delta>
void add_rows(const SteerAdd& a, void (*add)(Element*, const Delta*, std::int64_t)) {
  Element* hidden = static_cast<Element*>(a.hidden);
  const Delta* delta = static_cast<const Delta*>(a.delta);
  for (std::int64_t b = 0; b < a.batch; ++b) {
    for (std::int64_t t = 0; t < a.tokens; ++t) {
      if (a.mask && !a.mask[b * a.mask_batch_stride + t * a.mask_token_stride]) continue;
      add(hidden + b * a.batch_stride + t * a.token_stride, delta, a.width);
    }
  }
}

}  // namespace

void steer_add_cpu(const SteerAdd& args) {
  switch (args.dtype) {
    case DType::kFloat32:
      return add_rows<float, float>(args, add_row);
    case DType::kFloat64:
      return add_rows<double, double>(args, add_row);
    case DType::kFloat16:
      return add_rows<std::uint16_t, float>(args, add_row_float16);
    case DType::kBFloat16:
      return add_rows<std::uint16_t, float>(args, add_row_bfloat16);
  }
}

}  // namespace expertsteer
