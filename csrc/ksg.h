// Neighbour counts of Kraskov, Stoegbauer and Grassberger (2004) for every pair of layers.
//
// Framework-free, like steer.h: raw pointers in, counts out. Only comparisons and maxima of the
// given distances are taken, so the counts are those of any other program on the same distances.
#pragma once

#include <cstdint>

namespace expertsteer {

struct KsgCounts {
  const float* x;           // [layers_x, rows, stride], distances; infinite from a point to itself
  const float* y;           // [layers_y, rows, stride]; and in the padding up to `stride`
  std::int32_t *n_x, *n_y;  // [layers_x, layers_y, rows], written
  std::int64_t layers_x, layers_y, rows;
  std::int64_t stride;  // points, padded to a multiple of 16
  int k;                // 1 <= k < points
  int variant;          // 1: strictly nearer than the k-th; 2: within the k nearest's rectangle
};

// Rows are shared out among `threads` threads.
void ksg_counts_cpu(const KsgCounts& args, int threads);

}  // namespace expertsteer
