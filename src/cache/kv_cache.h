// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/copy_blocks.h"
#include "kernels/kv_view.h"

namespace vllm_metal {

// What a model's layers keep for each token.
struct KVCacheSpec {
  int num_layers;
  int num_kv_heads;
  int head_dim;
  mx::Dtype dtype;

  // Keys and values of one token in all layers.
  size_t bytes_per_token() const {
    return 2 * mx::size_of(dtype) * static_cast<size_t>(num_layers) *
           static_cast<size_t>(num_kv_heads) * static_cast<size_t>(head_dim);
  }
};

// Names a request for as long as it keeps what is cached of it. Never used twice.
using RequestKey = uint64_t;

// A step as a cache sees it: its requests in the order of the batch.
struct CacheStep {
  std::vector<RequestKey> keys;       // [num_requests]
  std::vector<int32_t> query_starts;  // [num_requests + 1] first 0, last the step's tokens
  std::vector<int32_t> context_lens;  // [num_requests] tokens cached once the step is done; the
                                      // step's own are the last of them
  // Tokens of request i: they end at its context_len.
  int32_t num_queries(size_t i) const { return query_starts[i + 1] - query_starts[i]; }

  // The scheduler's blocks; empty for a cache that finds room itself.
  std::vector<std::vector<int32_t>> block_tables;  // [num_requests], in the order of the tokens
  std::vector<BlockCopy> block_copies;             // to be made before the step
};

// Storage of keys and values, the same to models whatever is behind it.
class KVCache {
 public:
  virtual ~KVCache() = default;
  // Makes room for the tokens of a step and says where all lie. Throws std::runtime_error when
  // there is none, std::invalid_argument for blocks that cannot be.
  virtual BatchLayout prepare(const CacheStep& step) = 0;
  // The cache of one layer; valid until the cache changes. `layout` must outlive it.
  virtual KVView view(int layer, const BatchLayout& layout) = 0;
  // Forgets a request and its tokens; unknown keys are fine.
  virtual void release(RequestKey key) = 0;
  // Forgets all requests and frees their memory.
  virtual void clear() = 0;
  // Memory held, bytes.
  virtual size_t nbytes() const = 0;
  // Has each step check what must always hold of the storage, where there is something to check.
  virtual void check_invariants(bool /*enabled*/) {}
};

}  // namespace vllm_metal
