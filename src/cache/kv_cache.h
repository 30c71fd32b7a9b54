// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

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

// Storage of keys and values, the same to models whatever is behind it.
class KVCache {
 public:
  virtual ~KVCache() = default;
  // The cache of one layer; valid until the cache changes. `layout` must outlive it.
  virtual KVView view(int layer, const BatchLayout& layout) = 0;
};

}  // namespace vllm_metal
