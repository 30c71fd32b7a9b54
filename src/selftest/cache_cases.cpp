// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>
#include <random>

#include "common/text.h"
#include "kernels/copy_blocks.h"
#include "kernels/kv_write.h"
#include "kernels/split_rotary.h"
#include "selftest/cache_inputs.h"
#include "selftest/op_case.h"
#include "selftest/rotary_angles.h"

namespace vllm_metal::selftest {

namespace {

constexpr int kNumRows = 320, kNumHeads = 3;

// Rows of the cache in random order.
std::vector<int32_t> slots_of(int num_tokens, unsigned seed = 1) {
  std::vector<int32_t> slots(kNumRows);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(seed));
  slots.resize(num_tokens);
  return slots;
}

Cache cache_of(const Numbers& numbers, int head_dim) {
  Cache cache = make_cache(kNumRows, kNumHeads, head_dim, numbers.rounded_to);
  cache = {numbers.hold(cache.keys), numbers.hold(cache.values)};
  mx::eval(cache.keys, cache.values);
  return cache;
}

std::vector<mx::array> written(const Numbers& numbers, int num_tokens, int head_dim) {
  Cache cache = cache_of(numbers, head_dim);
  const BatchLayout layout = layout_of(slots_of(num_tokens));
  KVView view{cache.keys, cache.values, layout};
  // A part of a wider projection: rows do not follow each other.
  const auto fused = numbers({num_tokens, 3 * kNumHeads, head_dim}, 1);
  const auto heads = [&](int first) {
    return mx::slice(fused, {0, first, 0}, {num_tokens, first + kNumHeads, head_dim});
  };
  kv_write(view, heads(kNumHeads), heads(2 * kNumHeads));
  return {cache.keys, cache.values};
}

std::vector<mx::array> rotated_and_written(const Numbers& numbers, int head_dim) {
  constexpr int kTokens = 40;
  Cache cache = cache_of(numbers, head_dim);
  const BatchLayout layout = layout_of(slots_of(kTokens));
  KVView view{cache.keys, cache.values, layout};
  const HeadCounts heads{2 * kNumHeads, kNumHeads, head_dim};
  const auto queries = rotary_kv_write(numbers({kTokens, 4 * kNumHeads * head_dim}, 2),
                                       rotary_angles(kTokens, head_dim, 7), heads, view);
  return {queries, cache.keys, cache.values};
}

std::vector<mx::array> copied(const Numbers& numbers, int block_size) {
  Cache cache = cache_of(numbers, 64);
  copy_blocks(cache.keys, cache.values, {{3, 0}, {3, 6}, {4, 5}}, block_size);
  return {cache.keys, cache.values};
}

}  // namespace

std::vector<OpCase> cache_cases(bool quick) {
  std::vector<OpCase> cases;
  for (int head_dim : quick ? std::vector<int>{64} : std::vector<int>{64, 80, 128, 256}) {
    for (int num_tokens : {1, 300})
      cases.push_back({text("kv_write/", num_tokens, "_tokens_of_", head_dim), Exactness::kCopy,
                       cache_kernels_of(head_dim), [num_tokens, head_dim](const Numbers& numbers) {
                         return written(numbers, num_tokens, head_dim);
                       }});
    cases.push_back({text("rotary_kv_write/heads_of_", head_dim), Exactness::kRounded,
                     cache_kernels_of(head_dim), [head_dim](const Numbers& numbers) {
                       return rotated_and_written(numbers, head_dim);
                     }});
  }
  for (int block_size : quick ? std::vector<int>{16} : std::vector<int>{8, 16, 32})
    cases.push_back({text("copy_blocks/blocks_of_", block_size), Exactness::kCopy,
                     cache_kernels_of(64),
                     [block_size](const Numbers& numbers) { return copied(numbers, block_size); }});
  return cases;
}

}  // namespace vllm_metal::selftest
