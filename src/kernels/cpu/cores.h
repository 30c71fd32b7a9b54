// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pthread.h>

#include <span>

namespace vllm_metal::cpu {

// Cores that this process may use: its affinity mask where the system has one.
int cores_of_process();

// The core that runs the calling thread at this moment; -1 where the system does not say.
int current_core();

// Lets `threads` of this process run on its cores but `core`; on all where that would leave none
// or `core` is -1.
void keep_off_core(std::span<const pthread_t> threads, int core);

}  // namespace vllm_metal::cpu
