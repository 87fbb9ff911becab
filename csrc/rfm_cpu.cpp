#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "rfm.h"

// One source, several instruction sets, as in steer_cpu.cpp.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define EXPERTSTEER_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define EXPERTSTEER_INLINE inline __attribute__((always_inline))
#else
#define EXPERTSTEER_CLONES
#define EXPERTSTEER_INLINE inline
#endif

namespace expertsteer {
namespace {

constexpr std::int64_t kTile = 64;  // a 64 x 64 tile of doubles fits a level-1 cache
constexpr std::int64_t kSerial =
    4 << 20;  // entries below which other pools' spinning threads cost more

// Calls `work(block)` for every block, handed out as threads become free.
template <typename F>
void for_blocks(std::int64_t blocks, std::int64_t entries, int threads, F work) {
  threads = static_cast<int>(std::min<std::int64_t>(threads, blocks));
  if (threads <= 1 || entries < kSerial) {
    for (std::int64_t b = 0; b < blocks; ++b) work(b);
    return;
  }
  std::atomic<std::int64_t> next{0};
  auto run = [&] {
    for (std::int64_t b; (b = next.fetch_add(1)) < blocks;) work(b);
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(run);
  run();
  for (auto& thread : pool) thread.join();
}

std::int64_t tiles(std::int64_t n) { return (n + kTile - 1) / kTile; }

template <typename T>
std::vector<T> diagonal(const T* matrix, std::int64_t n) {
  std::vector<T> values(n);
  for (std::int64_t i = 0; i < n; ++i) values[i] = matrix[i * n + i];
  return values;
}

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

template <typename T>
EXPERTSTEER_INLINE T squared_distance(T own, T other, T product) {
  const T squared = own + other - 2 * product;
  return squared < 0 ? T(0) : squared;  // a NaN stays one
}

// Squared distances of the points of one row block to all points before them, row by row.
template <typename T, typename F>
EXPERTSTEER_INLINE void each_row(const T* gram, const T* norms, std::int64_t n, std::int64_t block,
                                 std::vector<T>& row, F use) {
  const std::int64_t stop = std::min(n, (block + 1) * kTile);
  for (std::int64_t i = block * kTile; i < stop; ++i) {
    const T* products = gram + i * n;
    T* out = row.data();
    for (std::int64_t j = 0; j < i; ++j) out[j] = squared_distance(norms[i], norms[j], products[j]);
    use(out, i);
  }
}

template <typename T>
struct Range {
  T low = std::numeric_limits<T>::infinity(), high = 0;
};

template <typename T>
EXPERTSTEER_CLONES void block_range(const T* gram, const T* norms, std::int64_t n,
                                    std::int64_t block, Range<T>& range) {
  std::vector<T> row(n);
  each_row(gram, norms, n, block, row, [&](const T* squared, std::int64_t count) {
    T low = range.low, high = range.high;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (std::int64_t j = 0; j < count; ++j) {
      low = squared[j] < low ? squared[j] : low;
      high = squared[j] > high ? squared[j] : high;
    }
    range.low = low, range.high = high;
  });
}

constexpr int kBins = 4096;

template <typename T>
struct Histogram {
  T low, scale;  // bin of v: (v - low) * scale, monotone in v whatever the rounding
  std::int64_t below = 0;
  std::vector<std::int64_t> counts = std::vector<std::int64_t>(kBins, 0);
};

template <typename T>
EXPERTSTEER_INLINE std::int32_t bin_of(T value, T low, T scale) {
  const T place = (value - low) * scale;
  // Outside values land in -1 and kBins.
  return place < 0 ? -1 : (place < kBins ? static_cast<std::int32_t>(place) : kBins);
}

template <typename T>
EXPERTSTEER_CLONES void block_histogram(const T* gram, const T* norms, std::int64_t n,
                                        std::int64_t block, Histogram<T>& histogram) {
  std::vector<T> row(n);
  std::vector<std::int32_t> bins(n);
  std::vector<std::int32_t> counts(kBins + 2, 0);
  const T low = histogram.low, scale = histogram.scale;
  each_row(gram, norms, n, block, row, [&](const T* squared, std::int64_t count) {
    std::int32_t* out = bins.data();
    for (std::int64_t j = 0; j < count; ++j) out[j] = bin_of(squared[j], low, scale);
    for (std::int64_t j = 0; j < count; ++j) ++counts[out[j] + 1];
  });
  histogram.below += counts[0];
  for (int b = 0; b < kBins; ++b) histogram.counts[b] += counts[b + 1];
}

template <typename T>
EXPERTSTEER_CLONES void block_gather(const T* gram, const T* norms, std::int64_t n,
                                     std::int64_t block, const Histogram<T>& histogram,
                                     std::int32_t bin, std::vector<T>& found) {
  std::vector<T> row(n);
  const T low = histogram.low, scale = histogram.scale;
  each_row(gram, norms, n, block, row, [&](const T* squared, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j)
      if (bin_of(squared[j], low, scale) == bin) found.push_back(squared[j]);
  });
}

// The entry of rank `rank` (from zero) among the squared distances: find its bin in a histogram of
// the whole range, collect the few entries of that bin, select among them.
template <typename T>
T select(const T* gram, const T* norms, std::int64_t n, const Range<T>& range, std::int64_t rank,
         int threads) {
  if (!(range.high > range.low)) return range.low;
  const T scale = T(kBins) / (range.high - range.low);
  if (!std::isfinite(scale)) return range.low;
  const std::int64_t blocks = tiles(n), entries = n * n / 2;
  std::vector<Histogram<T>> parts(blocks);
  for (auto& part : parts) part.low = range.low, part.scale = scale;
  for_blocks(blocks, entries, threads,
             [&](std::int64_t b) { block_histogram(gram, norms, n, b, parts[b]); });
  std::vector<std::int64_t> counts(kBins, 0);
  for (const auto& part : parts)
    for (int b = 0; b < kBins; ++b) counts[b] += part.counts[b];
  // The largest entry may round into the bin past the end; it is part of the last one's successor.
  std::int32_t bin = 0;
  std::int64_t before = 0;
  while (bin < kBins && before + counts[bin] <= rank) before += counts[bin++];
  std::vector<std::vector<T>> found(blocks);
  for_blocks(blocks, entries, threads,
             [&](std::int64_t b) { block_gather(gram, norms, n, b, parts[b], bin, found[b]); });
  std::vector<T> all;
  for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
  const auto place = all.begin() + (rank - before);
  std::nth_element(all.begin(), place, all.end());
  return *place;
}

template <typename T>
T mean_distance(const T* gram, const T* norms, std::int64_t n) {
  std::vector<T> row(n);
  double sum = 0;
  for (std::int64_t b = 0; b < tiles(n); ++b)
    each_row(gram, norms, n, b, row, [&](const T* squared, std::int64_t count) {
      for (std::int64_t j = 0; j < count; ++j) sum += std::sqrt(static_cast<double>(squared[j]));
    });
  return static_cast<T>(sum / (static_cast<double>(n) * static_cast<double>(n - 1) / 2));
}

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
T median_distance(const T* gram, std::int64_t n, int threads) {
  const std::vector<T> norms = diagonal(gram, n);
  const std::int64_t blocks = tiles(n), pairs = n * (n - 1) / 2;
  std::vector<Range<T>> parts(blocks);
  for_blocks(blocks, n * n / 2, threads,
             [&](std::int64_t b) { block_range(gram, norms.data(), n, b, parts[b]); });
  Range<T> range;
  for (const auto& part : parts) {
    range.low = std::min(range.low, part.low);
    range.high = std::max(range.high, part.high);
  }
  const T squared = select(gram, norms.data(), n, range, (pairs - 1) / 2, threads);
  return squared > 0 ? std::sqrt(squared) : mean_distance(gram, norms.data(), n);
}

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
  template T median_distance<T>(const T*, std::int64_t, int);                         \
  template void laplace<T>(const T*, std::int64_t, T, T, T*, T*, int);                \
  template void gradient_transform<T>(const T*, const T*, std::int64_t, T*, T*, int); \
  template void mirror_lower<T>(T*, std::int64_t, int);
EXPERTSTEER_INSTANTIATE(float)
EXPERTSTEER_INSTANTIATE(double)

}  // namespace expertsteer
