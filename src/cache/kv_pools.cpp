// SPDX-License-Identifier: Apache-2.0
#include "cache/kv_pools.h"

#include <stdexcept>

#include "common/huge_pages.h"
#include "common/text.h"

namespace vllm_metal {

KVPools allocate_pools(const char* owner, const KVCacheSpec& spec, int64_t num_blocks,
                       int block_size) {
  const int64_t num_rows = num_blocks * block_size;
  const mx::Shape shape{static_cast<int>(num_rows), spec.num_kv_heads, spec.head_dim};
  KVPools pools;
  try {
    for (int layer = 0; layer < spec.num_layers; ++layer) {
      pools.keys.push_back(uninitialized_in_huge_pages(shape, spec.dtype));
      pools.values.push_back(uninitialized_in_huge_pages(shape, spec.dtype));
    }
  } catch (const std::runtime_error& error) {
    const size_t bytes = static_cast<size_t>(num_rows) * spec.bytes_per_token();
    throw std::runtime_error(text("[", owner, "] cannot allocate ", num_blocks, " blocks, ",
                                  bytes >> 20, " MiB: ", error.what()));
  }
  return pools;
}

}  // namespace vllm_metal
