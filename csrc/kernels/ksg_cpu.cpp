#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "ksg.h"
#include "share_out.h"

namespace expertsteer {
namespace {

using CountRow = void (*)(const KsgCounts&, std::int64_t);

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kLanes = 16;

float kth_joint_long(const float* x, const float* y, std::int64_t n, int k) {
  thread_local std::vector<float> joint;
  joint.resize(n);
  for (std::int64_t j = 0; j < n; ++j) joint[j] = std::max(x[j], y[j]);
  std::nth_element(joint.begin(), joint.begin() + (k - 1), joint.end());
  return joint[k - 1];
}

namespace baseline {
#include "ksg_row.inl"
}

// The widest instruction set of the processor is used. The clones of clones.h would not do here:
// the compiler clones after vector types have been lowered to the narrowest set.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EXPERTSTEER_DISPATCH
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "ksg_row.inl"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#include "ksg_row.inl"
}
#pragma GCC pop_options

enum class Width { kBaseline, kAvx2, kAvx512 };

Width widest() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Width::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Width::kAvx2;
  return Width::kBaseline;
}
#endif

}  // namespace

void max_norm_distances_cpu(const MaxNormDistances& args, int threads) {
  auto distances = baseline::distances_from;
#ifdef EXPERTSTEER_DISPATCH
  if (widest() == Width::kAvx512) distances = avx512::distances_from;
  if (widest() == Width::kAvx2) distances = avx2::distances_from;
#endif
  share_out(args.layers * args.rows, threads, [&](std::int64_t task) { distances(args, task); });
}

void ksg_counts_cpu(const KsgCounts& args, int threads) {
  CountRow count_row = baseline::count_row_for(args.k);
#ifdef EXPERTSTEER_DISPATCH
  if (widest() == Width::kAvx512) count_row = avx512::count_row_for(args.k);
  if (widest() == Width::kAvx2) count_row = avx2::count_row_for(args.k);
#endif
  // Counts of neighbouring rows share a cache line, so one thread writes all sixteen of them.
  const std::int64_t line = 16;
  share_out((args.rows + line - 1) / line, threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(args.rows, (task + 1) * line);
    for (std::int64_t row = task * line; row < end; ++row) count_row(args, row);
  });
}

}  // namespace expertsteer
