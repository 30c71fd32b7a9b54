// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/cpu/simd/elementwise.h"

namespace vllm_metal::cpu {

// The kernels of the instruction set in use.
inline const ElementwiseKernels& elementwise() {
  return VLLM_METAL_KERNELS_OF(current_isa(), elementwise_kernels);
}

// Elements that a thread must have before waking another one pays: a few microseconds of work.
constexpr int64_t kElementsPerRange = 32768;

// Runs `kernel` over `count` rows of about `width` elements, on several threads when they are many.
template <typename Arguments>
void for_each_row(void (*kernel)(const Arguments&, int64_t, int64_t), const Arguments& arguments,
                  int64_t count, int64_t width) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerRange / std::max<int64_t>(1, width));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
}

}  // namespace vllm_metal::cpu
