// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal {

// Block `target` becomes what block `source` is.
struct BlockCopy {
  int32_t source;
  int32_t target;
};

// Copies whole blocks of one layer's cache, block b being rows [b * block_size, (b + 1) *
// block_size), and replaces the handles by ones whose graph node follows the copies. One node. The
// memory stays where it is, also while an earlier step is still being computed (see alias_output).
//   keys, values  [num_rows, num_kv_heads, head_dim], num_rows a multiple of block_size
// A block may be the source of several copies. The copies have no order: no block may be the target
// of two of them, or the target of one and the source of another or of itself.
// Throws std::invalid_argument for such blocks, for blocks outside the cache and when the two
// caches do not fit each other.
void copy_blocks(mx::array& keys, mx::array& values, const std::vector<BlockCopy>& copies,
                 int block_size);

// The same in public MLX ops, one slice_update a copy: for devices without a kernel, and the
// reference in tests.
void copy_blocks_fallback(mx::array& keys, mx::array& values, const std::vector<BlockCopy>& copies,
                          int block_size);

}  // namespace vllm_metal
