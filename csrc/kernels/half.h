// Half-precision types as bits, with conversions in plain arithmetic that compilers vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace expertsteer {

struct Float16 {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }

inline float widen(BFloat16 half) { return float_of(static_cast<std::uint32_t>(half.bits) << 16); }

inline float widen(Float16 half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = half.bits & 0x7fffu;
  // A float whose exponent is biased like the half's, rescaled by 2^112: exact, subnormals
  // included.
  const std::uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
  // Infinity and NaN keep their payload.
  const std::uint32_t special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  return float_of(sign | (magnitude >= 0x7c00u ? special : finite));
}

inline void narrow(float value, float* out) { *out = value; }
inline void narrow(double value, double* out) { *out = value; }

// Round to nearest even, NaN kept quiet: what torch does.
inline void narrow(float value, BFloat16* out) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<std::uint16_t>(is_nan ? ((bits >> 16) | 0x40u) : rounded);
}

// Round to nearest even. Every case is computed and one chosen, so that loops stay free of
// branches.
inline void narrow(float value, Float16* out) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  std::uint32_t half = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
  // Below the smallest normal half, 2^-14. Adding a power of two whose last mantissa bit is the
  // half's last bit lets the floating-point unit do the rounding.
  const std::uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  half = magnitude < 0x38800000u ? small : half;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // from 65520 on
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  out->bits = static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | half);
}

}  // namespace expertsteer
