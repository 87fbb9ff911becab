#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "ksg.h"

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

// As in steer_cpu.cpp the widest instruction set of the processor is used. target_clones would not
// do here: it clones after vector types have been lowered to the narrowest set.
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
#endif

CountRow widest_count_row(int k) {
#ifdef EXPERTSTEER_DISPATCH
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return avx512::count_row_for(k);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::count_row_for(k);
  }
#endif
  return baseline::count_row_for(k);
}

}  // namespace

void ksg_counts_cpu(const KsgCounts& args, int threads) {
  const CountRow count_row = widest_count_row(args.k);
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t row; (row = next++) < args.rows;) count_row(args, row);
  };
  std::vector<std::thread> others;
  const std::int64_t wanted = std::min<std::int64_t>(threads, args.rows);
  for (std::int64_t t = 1; t < wanted; ++t) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace expertsteer
