// Neighbour counts of Kraskov, Stoegbauer and Grassberger (2004) for every pair of layers.
//
// Framework-free, like steer.h: raw pointers in, counts out. Only comparisons and maxima of the
// given distances are taken, so the counts are those of any other program on the same distances.
#pragma once

#include <cstdint>

namespace expertsteer {

// Largest coordinate difference from `rows` points, the first of them `first`, to all n.
struct MaxNormDistances {
  const float* codes;  // [layers, components, n]: the points of a layer lie side by side
  float* out;          // [layers, rows, n], written; infinite from a point to itself
  std::int64_t layers, components, n, first, rows;
};

struct KsgCounts {
  const float* x;           // [layers_x, rows, n], distances; infinite from a point to itself
  const float* y;           // [layers_y, rows, n]
  std::int32_t *n_x, *n_y;  // [layers_x, layers_y, rows], written
  std::int64_t layers_x, layers_y, rows, n;
  int k;        // 1 <= k < n
  int variant;  // 1: strictly nearer than the k-th; 2: within the rectangle of the k nearest
};

// The work is shared out among `threads` threads.
void max_norm_distances_cpu(const MaxNormDistances& args, int threads);
void ksg_counts_cpu(const KsgCounts& args, int threads);

}  // namespace expertsteer
