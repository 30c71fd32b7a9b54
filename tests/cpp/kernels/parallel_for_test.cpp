// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/parallel_for.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace vllm_metal::cpu {
namespace {

// How often each index was visited.
std::vector<int> visits(int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> counters(count);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++counters.at(i);
  });
  return {counters.begin(), counters.end()};
}

TEST(ParallelFor, VisitsEveryIndexOnce) {
  for (int64_t count : {1, 2, 3, 7, 64, 1000, 4097}) {
    for (int64_t grain : {1, 2, 3, 64, 5000}) {
      EXPECT_EQ(visits(count, grain), std::vector<int>(count, 1)) << count << " by " << grain;
    }
  }
}

TEST(ParallelFor, RangesAreNoLongerThanTheGrain) {
  for (int64_t count : {1, 9, 100, 1001}) {
    std::atomic<int64_t> longest{0}, total{0};
    parallel_for(count, 7, [&](int64_t begin, int64_t end) {
      EXPECT_LT(begin, end);
      total += end - begin;
      int64_t seen = longest;
      while (seen < end - begin && !longest.compare_exchange_weak(seen, end - begin)) {
      }
    });
    EXPECT_EQ(longest, std::min<int64_t>(count, 7));
    EXPECT_EQ(total, count);
  }
}

TEST(ParallelFor, NothingToDoCallsNothing) {
  int calls = 0;
  parallel_for(0, 1, [&](int64_t, int64_t) { ++calls; });
  parallel_for(-3, 1, [&](int64_t, int64_t) { ++calls; });
  EXPECT_EQ(calls, 0);
}

TEST(ParallelFor, AGrainBelowOneCountsAsOne) {
  EXPECT_EQ(visits(5, 0), std::vector<int>(5, 1));
  EXPECT_EQ(visits(5, -4), std::vector<int>(5, 1));
}

TEST(ParallelFor, CallsFromABodyRunInline) {
  constexpr int64_t kOuter = 20, kInner = 50;
  std::vector<std::atomic<int>> counters(kOuter * kInner);
  std::atomic<int> on_other_threads{0};
  parallel_for(kOuter, 1, [&](int64_t outer, int64_t) {
    const auto thread = std::this_thread::get_id();
    parallel_for(kInner, 3, [&](int64_t begin, int64_t end) {
      if (std::this_thread::get_id() != thread) ++on_other_threads;
      for (int64_t i = begin; i < end; ++i) ++counters[outer * kInner + i];
    });
  });
  EXPECT_EQ(on_other_threads, 0);
  EXPECT_EQ(std::vector<int>(counters.begin(), counters.end()),
            std::vector<int>(kOuter * kInner, 1));
}

TEST(ParallelFor, RethrowsAnExceptionAndStaysUsable) {
  for (int64_t bad : {0, 1, 50, 99}) {
    std::string message;
    try {
      parallel_for(100, 1, [&](int64_t begin, int64_t) {
        if (begin == bad) throw std::out_of_range("index " + std::to_string(begin));
      });
    } catch (const std::out_of_range& error) {
      message = error.what();
    }
    EXPECT_EQ(message, "index " + std::to_string(bad));
    EXPECT_EQ(visits(100, 1), std::vector<int>(100, 1));
  }
}

TEST(ParallelFor, RethrowsOneOfManyExceptions) {
  EXPECT_THROW(
      parallel_for(1000, 1, [](int64_t, int64_t) { throw std::runtime_error("every range"); }),
      std::runtime_error);
}

TEST(ParallelFor, ANestedExceptionReachesTheCaller) {
  EXPECT_THROW(parallel_for(10, 1,
                            [](int64_t, int64_t) {
                              parallel_for(10, 1, [](int64_t begin, int64_t) {
                                if (begin == 5) throw std::domain_error("inner");
                              });
                            }),
               std::domain_error);
  EXPECT_EQ(visits(100, 1), std::vector<int>(100, 1));
}

TEST(ParallelFor, SeveralThreadsMayCallAtOnce) {
  constexpr int kCallers = 4, kCalls = 200;
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int call = 0; call < kCalls; ++call) {
        const int64_t count = 1 + (caller * 31 + call) % 97;
        if (visits(count, 2) != std::vector<int>(count, 1)) ++wrong;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ParallelFor, WritesOfBodiesAreVisibleToTheCaller) {
  for (int round = 0; round < 500; ++round) {
    std::vector<int64_t> squares(64, -1);  // not atomic: the call itself must order the writes
    parallel_for(64, 1, [&](int64_t begin, int64_t) { squares[begin] = begin * begin; });
    for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(squares[i], i * i);
  }
}

// A forked child has none of the pool's threads.
TEST(ParallelFor, WorksInAForkedChild) {
  ASSERT_EQ(visits(100, 1), std::vector<int>(100, 1));  // starts the pool here
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(visits(100, 1) == std::vector<int>(100, 1) ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(ParallelFor, UsesAtLeastOneThread) { EXPECT_GE(num_threads(), 1); }

}  // namespace
}  // namespace vllm_metal::cpu
