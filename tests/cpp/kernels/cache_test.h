// SPDX-License-Identifier: Apache-2.0
// What the tests of ops that write the cache share.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/kernel_test.h"
#include "kernels/kv_view.h"

namespace vllm_metal::testing_support {

// One layer's.
struct Cache {
  mx::array keys;    // [num_rows, num_heads, head_dim]
  mx::array values;  // [num_rows, num_heads, head_dim]
};

inline Cache make_cache(int num_rows, int num_heads, int head_dim, mx::Dtype dtype) {
  Cache cache{random_array({num_rows, num_heads, head_dim}, dtype, 100),
              random_array({num_rows, num_heads, head_dim}, dtype, 101)};
  mx::eval(cache.keys, cache.values);
  return cache;
}

// `cache` with row slots[i] replaced by token i. Values of rows of one width.
inline std::vector<double> with_rows(std::vector<double> cache, const std::vector<double>& tokens,
                                     const std::vector<int32_t>& slots) {
  const size_t width = slots.empty() ? 0 : tokens.size() / slots.size();
  for (size_t i = 0; i < slots.size(); ++i)
    std::copy_n(tokens.begin() + i * width, width, cache.begin() + slots[i] * width);
  return cache;
}

// One request whose tokens go to the given rows.
inline BatchLayout layout_of(std::vector<int32_t> slots) {
  const int32_t num_tokens = static_cast<int32_t>(slots.size());
  return BatchLayout({0, num_tokens}, {num_tokens}, std::move(slots), {0}, 0);
}

}  // namespace vllm_metal::testing_support
