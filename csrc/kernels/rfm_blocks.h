// What the passes of rfm.h share: blocks of rows over threads, and distances from a Gram matrix.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "clones.h"
#include "share_out.h"

namespace expertsteer {

constexpr std::int64_t kTile = 64;  // a 64 x 64 tile of doubles fits a level-1 cache
// Entries below which other pools' spinning threads cost more.
constexpr std::int64_t kSerialEntries = 4 << 20;

// Calls `work(block)` for every block, handed out as threads become free.
template <typename F>
void for_blocks(std::int64_t blocks, std::int64_t entries, int threads, const F& work) {
  share_out(blocks, entries < kSerialEntries ? 1 : threads, work);
}

inline std::int64_t tiles(std::int64_t n) { return (n + kTile - 1) / kTile; }

template <typename T>
std::vector<T> diagonal(const T* matrix, std::int64_t n) {
  std::vector<T> values(n);
  for (std::int64_t i = 0; i < n; ++i) values[i] = matrix[i * n + i];
  return values;
}

template <typename T>
EXPERTSTEER_INLINE T squared_distance(T own, T other, T product) {
  const T squared = own + other - 2 * product;
  return squared < 0 ? T(0) : squared;  // a NaN stays one
}

}  // namespace expertsteer
