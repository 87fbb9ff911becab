// Whether all numbers of an array are finite, by their exponent bits.
#pragma once

#include <cstdint>

namespace expertsteer {

// `exponent`: its bits; NaN and infinity have all of them.
template <typename Bits>
bool finite(const Bits* values, std::int64_t count, Bits exponent) {
  bool all = true;
  for (std::int64_t i = 0; i < count; ++i) all &= (values[i] & exponent) != exponent;
  return all;
}

}  // namespace expertsteer
