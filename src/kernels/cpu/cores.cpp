// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cores.h"

#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace vllm_metal::cpu {

#if defined(__linux__)

int cores_of_process() {
  cpu_set_t mask;
  if (sched_getaffinity(getpid(), sizeof(mask), &mask) == 0) return CPU_COUNT(&mask);
  return static_cast<int>(std::thread::hardware_concurrency());
}

int current_core() { return sched_getcpu(); }

void keep_off_core(std::span<const pthread_t> threads, int core) {
  cpu_set_t mask;
  if (sched_getaffinity(getpid(), sizeof(mask), &mask) != 0) return;
  if (core >= 0 && core < CPU_SETSIZE && CPU_COUNT(&mask) > 1) CPU_CLR(core, &mask);
  for (const pthread_t thread : threads) pthread_setaffinity_np(thread, sizeof(mask), &mask);
}

#else

int cores_of_process() { return static_cast<int>(std::thread::hardware_concurrency()); }
int current_core() { return -1; }
void keep_off_core(std::span<const pthread_t>, int) {}

#endif

}  // namespace vllm_metal::cpu
