// SPDX-License-Identifier: Apache-2.0
// What the tests of ops that write the cache share.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/kernel_test.h"
#include "selftest/cache_inputs.h"

namespace vllm_metal::testing_support {

using selftest::Cache;
using selftest::layout_of;
using selftest::make_cache;

// `cache` with row slots[i] replaced by token i. Values of rows of one width.
inline std::vector<double> with_rows(std::vector<double> cache, const std::vector<double>& tokens,
                                     const std::vector<int32_t>& slots) {
  const size_t width = slots.empty() ? 0 : tokens.size() / slots.size();
  for (size_t i = 0; i < slots.size(); ++i)
    std::copy_n(tokens.begin() + i * width, width, cache.begin() + slots[i] * width);
  return cache;
}

}  // namespace vllm_metal::testing_support
