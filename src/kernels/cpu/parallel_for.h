// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace vllm_metal::cpu {

// Calls body(context, begin, end) on ranges that together cover [0, count), each of at most
// `grain` items, on the calling thread and the workers of one process-wide pool. Returns when
// all are done. An exception thrown by a body is rethrown here once the others have ended.
// The pool has as many threads as cores the process may use (affinity mask, then
// OMP_NUM_THREADS if set and smaller); its workers sleep when idle. Calls from inside a body run
// inline. Several threads may call at once; they take turns.
using RangeBody = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t grain, RangeBody body, const void* context);

template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  parallel_for(
      count, grain,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Function*>(context))(begin, end);
      },
      &function);
}

// Threads that work on a parallel_for, the caller included.
int num_threads();

}  // namespace vllm_metal::cpu
