// SPDX-License-Identifier: Apache-2.0
// The threads behind parallel_for: how many there are, that they sleep, and that they survive
// exceptions and forks. What a process is told at its start is tested in death tests, whose
// children are started anew.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>

#include "kernels/cpu/cores.h"
#include "kernels/cpu/parallel_for.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace vllm_metal::cpu {
namespace {

using namespace std::chrono_literals;

// Two bodies that wait for each other end only if two threads run them.
void expect_two_threads_at_work() {
  if (num_threads() < 2) GTEST_SKIP() << "one thread only";
  std::atomic<int> arrived{0};
  parallel_for(2, 1, [&](int64_t, int64_t) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
}

// ---- Sleep ----

// CPU time of all threads of this process.
double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Of the interval below, a thread that polls uses all that the machine gives it.
constexpr auto kInterval = 400ms;
constexpr double kIdleSeconds = 0.04;

TEST(PoolThreads, SleepWhenThereIsNothingToDo) {
  expect_two_threads_at_work();
  std::this_thread::sleep_for(50ms);  // those that still poll have stopped by then
  const double before = cpu_seconds();
  std::this_thread::sleep_for(kInterval);
  EXPECT_LT(cpu_seconds() - before, kIdleSeconds);
}

TEST(PoolThreads, SleepWhileTheyWaitForOneAnother) {
  expect_two_threads_at_work();
  const double before = cpu_seconds();
  // Whichever thread takes the first item, the other ones have nothing to do.
  parallel_for(2, 1, [&](int64_t begin, int64_t) {
    if (begin == 0) std::this_thread::sleep_for(kInterval);
  });
  EXPECT_LT(cpu_seconds() - before, kIdleSeconds);
}

// ---- Exceptions and forks ----

TEST(PoolThreads, WorkTogetherAfterAnException) {
  for (int64_t bad : {0, 1}) {
    EXPECT_THROW(parallel_for(2, 1,
                              [&](int64_t begin, int64_t) {
                                if (begin == bad) throw std::runtime_error("bad");
                              }),
                 std::runtime_error);
    expect_two_threads_at_work();
  }
}

int sum_of_squares() {
  std::atomic<int> sum{0};
  parallel_for(100, 1, [&](int64_t begin, int64_t) { sum += static_cast<int>(begin * begin); });
  return sum;
}

// Locks of the pool that other threads hold at that moment stay locked in the child.
TEST(PoolThreads, AProcessMayForkWhileTheyWork) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer takes threads of a forked child for those of its parent";
#endif
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) sum_of_squares();
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(60);  // a child that hangs ends
      _exit(sum_of_squares() == 328350 ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  stop = true;
  busy.join();
}

// ---- Number ----

class PoolThreadsDeathTest : public ::testing::Test {
 protected:
  PoolThreadsDeathTest() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");  // a new process instead of a fork
    if (const char* value = getenv("OMP_NUM_THREADS")) old_limit_ = value;
  }
  ~PoolThreadsDeathTest() override {
    if (old_limit_.empty()) {
      unsetenv("OMP_NUM_THREADS");
    } else {
      setenv("OMP_NUM_THREADS", old_limit_.c_str(), 1);
    }
  }

 private:
  std::string old_limit_;
};

constexpr int kOtherThreads = 255;
constexpr int kMostThreads = 254;  // that an exit status can say

// Threads of this process; 0 where the system does not say, or they are not all ours.
int64_t count_threads() {
#if defined(__linux__) && !defined(__SANITIZE_THREAD__)
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"),
                       std::filesystem::directory_iterator());
#else
  return 0;
#endif
}

// Ends the process with the number of threads, or with kOtherThreads if work did not start them.
[[noreturn]] void exit_with_num_threads() {
  const int64_t before = count_threads();
  for (int i = 0; i < 50; ++i) sum_of_squares();
  const int64_t started = count_threads() - before;
  if (before > 0 && started != num_threads() - 1) _exit(kOtherThreads);
  _exit(std::min(num_threads(), kMostThreads));
}

TEST_F(PoolThreadsDeathTest, AreNoMoreThanOmpNumThreads) {
  const int cores = cores_of_process();
  for (const int limit : {1, 2, 3, 1000}) {
    setenv("OMP_NUM_THREADS", std::to_string(limit).c_str(), 1);
    EXPECT_EXIT(exit_with_num_threads(),
                ::testing::ExitedWithCode(std::min({limit, cores, kMostThreads})), "");
  }
}

TEST_F(PoolThreadsDeathTest, AreAsManyAsCoresWithoutALimit) {
  const int cores = cores_of_process();
  unsetenv("OMP_NUM_THREADS");
  EXPECT_EXIT(exit_with_num_threads(), ::testing::ExitedWithCode(std::min(cores, kMostThreads)),
              "");
}

#if defined(__linux__)

TEST_F(PoolThreadsDeathTest, AreNoMoreThanTheAffinityMaskHasCores) {
  unsetenv("OMP_NUM_THREADS");
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(getpid(), sizeof(all), &all), 0);
  cpu_set_t some;
  CPU_ZERO(&some);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &all)) continue;
    CPU_SET(core, &some);
    ASSERT_EQ(sched_setaffinity(getpid(), sizeof(some), &some), 0);
    EXPECT_EXIT(exit_with_num_threads(), ::testing::ExitedWithCode(CPU_COUNT(&some)), "");
    if (CPU_COUNT(&some) == 3) break;
  }
  ASSERT_EQ(sched_setaffinity(getpid(), sizeof(all), &all), 0);
}

#endif

}  // namespace
}  // namespace vllm_metal::cpu
