// SPDX-License-Identifier: Apache-2.0
// Caches and layouts for ops that write them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/kv_view.h"
#include "selftest/numbers.h"

namespace vllm_metal::selftest {

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

// One request whose tokens go to the given rows.
inline BatchLayout layout_of(std::vector<int32_t> slots) {
  const int32_t num_tokens = static_cast<int32_t>(slots.size());
  return BatchLayout({0, num_tokens}, {num_tokens}, std::move(slots), {0}, 0);
}

}  // namespace vllm_metal::selftest
