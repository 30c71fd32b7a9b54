// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cores.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace vllm_metal::cpu {
namespace {

TEST(CoresOfProcess, AreAtLeastOne) { EXPECT_GE(cores_of_process(), 1); }

#if defined(__linux__)

cpu_set_t mask_of(pthread_t thread) {
  cpu_set_t mask;
  EXPECT_EQ(pthread_getaffinity_np(thread, sizeof(mask), &mask), 0);
  return mask;
}

// A thread that sleeps until the test ends.
class Cores : public testing::Test {
 protected:
  ~Cores() override {
    stop_ = true;
    stop_.notify_all();
    thread_.join();
  }
  pthread_t handle() { return thread_.native_handle(); }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_{[this] { stop_.wait(false); }};
};

TEST_F(Cores, TheCurrentCoreIsOneOfTheMask) {
  const cpu_set_t mask = mask_of(pthread_self());
  EXPECT_TRUE(CPU_ISSET(current_core(), &mask));
}

TEST_F(Cores, ThreadsKeepOffACoreAndAreFreeAgain) {
  const cpu_set_t all = mask_of(handle());
  const pthread_t threads[] = {handle()};
  if (cores_of_process() > 1) {
    const int core = current_core();
    keep_off_core(threads, core);
    const cpu_set_t rest = mask_of(handle());
    EXPECT_FALSE(CPU_ISSET(core, &rest));
    EXPECT_EQ(CPU_COUNT(&rest), CPU_COUNT(&all) - 1);
  }
  keep_off_core(threads, -1);
  const cpu_set_t again = mask_of(handle());
  EXPECT_TRUE(CPU_EQUAL(&again, &all));
}

TEST_F(Cores, ACoreOutsideTheMaskChangesNothing) {
  const cpu_set_t all = mask_of(handle());
  const pthread_t threads[] = {handle()};
  for (const int core : {CPU_SETSIZE - 1, CPU_SETSIZE, 1 << 20}) {
    keep_off_core(threads, core);
    const cpu_set_t mask = mask_of(handle());
    EXPECT_TRUE(CPU_EQUAL(&mask, &all)) << core;
  }
}

#endif

}  // namespace
}  // namespace vllm_metal::cpu
