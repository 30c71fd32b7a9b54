// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "cache/paged_kv_cache.h"
#include "kernels/kv_write.h"
#include "support/block_tables.h"

namespace vllm_metal::test {

inline constexpr KVCacheSpec kSpec{
    .num_layers = 2, .num_kv_heads = 2, .head_dim = 16, .dtype = mx::float32};

// How many tokens requests get in a step.
using More = std::vector<std::pair<RequestKey, int32_t>>;

inline CacheStep step_of(const More& more, const std::map<RequestKey, int32_t>& lengths,
                         const BlockTables<RequestKey>& tables) {
  CacheStep step;
  step.query_starts = {0};
  for (const auto& [key, count] : more) {
    step.keys.push_back(key);
    step.query_starts.push_back(step.query_starts.back() + count);
    step.context_lens.push_back(lengths.at(key));
    step.block_tables.push_back(tables.of(key));
  }
  return step;
}

// What a token's key holds in all places; its value holds the negative.
inline float expected(RequestKey key, int32_t position, int layer) {
  return static_cast<float>(key) * 20000 + static_cast<float>(position) * 2 +
         static_cast<float>(layer);
}

// Keys of the tokens that a step adds: [num_tokens, num_kv_heads, head_dim].
inline mx::array new_keys(const CacheStep& step, int layer) {
  const int width = kSpec.num_kv_heads * kSpec.head_dim;
  std::vector<float> keys;
  for (size_t i = 0; i < step.keys.size(); ++i) {
    const int32_t count = step.query_starts[i + 1] - step.query_starts[i];
    for (int32_t at = step.context_lens[i] - count; at < step.context_lens[i]; ++at)
      keys.insert(keys.end(), static_cast<size_t>(width), expected(step.keys[i], at, layer));
  }
  return mx::array(keys.begin(), {step.query_starts.back(), kSpec.num_kv_heads, kSpec.head_dim},
                   mx::float32);
}

// A pool, and what must be in it.
class PagedChecker {
 public:
  PagedChecker(int64_t num_blocks, int block_size)
      : cache(kSpec, num_blocks, block_size), tables(num_blocks, block_size) {
    cache.check_invariants(true);
  }

  // A step in which requests get more tokens.
  BatchLayout append(const More& more, std::vector<BlockCopy> copies = {}) {
    for (const auto& [key, count] : more) tables.grow(key, lengths[key] += count);
    CacheStep step = step_of(more, lengths, tables);
    step.block_copies = std::move(copies);
    BatchLayout layout = cache.prepare(step);
    for (int layer = 0; layer < kSpec.num_layers; ++layer) {
      KVView view = cache.view(layer, layout);
      const mx::array keys = new_keys(step, layer);
      kv_write(view, keys, mx::negative(keys));
    }
    return layout;
  }

  void release(RequestKey key) {
    cache.release(key);
    tables.release(key);
    lengths.erase(key);
  }

  void check() {
    for (const auto& [key, length] : lengths)
      for (int32_t position = 0; position < length; ++position)
        ASSERT_NO_FATAL_FAILURE(check_token(tables.of(key), position, key));
  }

  // Token `position` of a table is the one that request `key` wrote.
  void check_token(const std::vector<int32_t>& table, int32_t position, RequestKey key) {
    const int size = cache.block_size();
    const auto row = static_cast<size_t>(table.at(static_cast<size_t>(position / size)) * size +
                                         position % size);
    const size_t width = static_cast<size_t>(kSpec.num_kv_heads * kSpec.head_dim);
    for (int layer = 0; layer < kSpec.num_layers; ++layer) {
      KVView view = cache.view(layer, any);
      mx::eval(view.keys, view.values);
      for (const size_t at : {row * width, row * width + width - 1}) {
        ASSERT_EQ(view.keys.data<float>()[at], expected(key, position, layer))
            << "request " << key << ", token " << position << ", layer " << layer;
        ASSERT_EQ(view.values.data<float>()[at], -expected(key, position, layer));
      }
    }
  }

  const BatchLayout any{{0, 1}, {1}, {0}, {0}, 0};
  PagedKVCache cache;
  BlockTables<RequestKey> tables;
  std::map<RequestKey, int32_t> lengths;
};

}  // namespace vllm_metal::test
