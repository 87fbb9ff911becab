// Tasks over threads that live for one call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace expertsteer {

// Calls work(0), ..., work(count - 1), whichever thread is free taking the next.
template <typename Work>
void share_out(std::int64_t count, int threads, const Work& work) {
  std::atomic<std::int64_t> next{0};
  const auto loop = [&] {
    for (std::int64_t i; (i = next++) < count;) work(i);
  };
  std::vector<std::thread> others;
  for (std::int64_t t = 1; t < std::min<std::int64_t>(threads, count); ++t) {
    others.emplace_back(loop);
  }
  loop();
  for (std::thread& other : others) other.join();
}

}  // namespace expertsteer
