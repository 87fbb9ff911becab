#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "rfm.h"
#include "rfm_blocks.h"

namespace expertsteer {
namespace {

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

template float median_distance<float>(const float*, std::int64_t, int);
template double median_distance<double>(const double*, std::int64_t, int);

}  // namespace expertsteer
