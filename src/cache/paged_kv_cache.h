// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache/block_ledger.h"
#include "cache/kv_cache.h"

namespace vllm_metal {

// The paged KV cache (arXiv:2309.06180): a pool of blocks that the scheduler hands out, block by
// block and shared between requests with a common prefix. Here is only where their contents lie:
//
//   one pool a layer for keys and one for values, [num_blocks * block_size, num_kv_heads, head_dim]
//   | block 0: nobody's | block 1 | block 2 | ...      block_table of a request: 7 2 9
//
// The pools are allocated whole and stay where they are. On most systems their memory is taken
// when it is first written.
class PagedKVCache final : public KVCache {
 public:
  // Tokens a block may have: what the kernels are made and tested for.
  static constexpr int kBlockSizes[] = {8, 16, 32, 64, 128};
  // The scheduler's block for tables that are not filled; nothing is ever written to it.
  static constexpr int32_t kNullBlock = 0;

  // Throws std::invalid_argument for other block sizes, fewer than two blocks or more rows than
  // can be numbered.
  PagedKVCache(const KVCacheSpec& spec, int64_t num_blocks, int block_size);

  // Copies blocks and takes note of the tables. Throws std::invalid_argument when a table names a
  // block that there is not or is too short.
  BatchLayout prepare(const CacheStep& step) override;
  KVView view(int layer, const BatchLayout& layout) override;
  void release(RequestKey key) override;
  void clear() override;
  size_t nbytes() const override { return keys_.empty() ? 0 : pool_bytes(); }

  int64_t num_blocks() const { return num_blocks_; }
  int block_size() const { return block_size_; }

  // Has each step check, at the price of waiting for the one before, what must always hold: see
  // BlockLedger, and the null block is as it was. For an empty cache; debug builds start with it.
  void check_invariants(bool enabled) override;

 private:
  size_t pool_bytes() const;
  void allocate();
  void check_table(const CacheStep& step, size_t request) const;
  void clear_null_block();
  void check_null_block() const;  // throws std::logic_error

  KVCacheSpec spec_;
  int64_t num_blocks_;
  int block_size_;
  std::vector<mx::array> keys_;    // one a layer, [num_rows, num_kv_heads, head_dim]; none: freed
  std::vector<mx::array> values_;  // likewise
  std::optional<BlockLedger> ledger_;  // while invariants are checked
};

}  // namespace vllm_metal
