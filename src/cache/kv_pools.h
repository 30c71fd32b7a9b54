// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"

namespace vllm_metal {

// Blocks of keys and values, whole from the start; on most systems their memory is taken when it is
// first written.
struct KVPools {
  std::vector<mx::array> keys;    // one a layer, [num_blocks * block_size, num_kv_heads, head_dim]
  std::vector<mx::array> values;  // likewise
};

// Pools of all layers. Throws std::runtime_error, which begins with `owner`, when there is no
// memory for one of them.
KVPools allocate_pools(const char* owner, const KVCacheSpec& spec, int64_t num_blocks,
                       int block_size);

}  // namespace vllm_metal
