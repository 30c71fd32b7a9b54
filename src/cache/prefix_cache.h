// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cache/contiguous_kv_cache.h"
#include "cache/kv_cache.h"

namespace vllm_metal {

// Blocks of a request's tokens and where the prefix cache has them.
struct CachedBlocks {
  RequestKey key;
  int32_t first_block = 0;      // of the request: the one that blocks[0] has
  std::vector<int32_t> blocks;  // [num_blocks] of the prefix cache
};

// What the prefix cache of the MLX-managed KV cache stores: keys and values of blocks of tokens,
// copied out of the rows of the requests that computed them and into those of others that begin
// alike. Who decides which blocks lie where is PrefixIndex.
//
//   one pool a layer for keys and one for values, [num_blocks * block_size, num_kv_heads, head_dim]
//
// The pools are allocated whole at the first save. On most systems their memory is taken when it
// is first written. Copies are graph operations, three a layer for each request that is saved and
// for all that are loaded in a call; on the one stream of all users of the caches their order is
// the order of the calls.
class PrefixCache {
 public:
  // Throws std::invalid_argument for sizes that are not positive or more rows than can be numbered.
  PrefixCache(const KVCacheSpec& spec, int64_t num_blocks, int block_size);

  // Copies tokens that `cache` holds into blocks. arrays() have to be evaluated before
  // `cache` is changed. Throws std::invalid_argument for blocks or tokens that there are not.
  void save(ContiguousKVCache& cache, const std::vector<CachedBlocks>& requests);
  // Copies blocks to where `cache` has made room. Throws std::invalid_argument likewise.
  void load(ContiguousKVCache& cache, const std::vector<CachedBlocks>& requests);
  // Frees the memory.
  void clear();

  // The pools: evaluated, they hold what was saved.
  std::vector<mx::array> arrays() const;
  size_t nbytes() const;

 private:
  // Rows, of this cache and of a KV cache, that hold the same tokens.
  struct Rows {
    std::vector<int32_t> ours;    // [num_tokens]
    std::vector<int32_t> theirs;  // [num_tokens]
  };

  Rows rows_of(const ContiguousKVCache& cache, const std::vector<CachedBlocks>& requests) const;
  void allocate();

  KVCacheSpec spec_;
  int64_t num_blocks_;
  int block_size_;
  std::vector<mx::array> keys_;    // one a layer, [num_rows, num_kv_heads, head_dim]; none: freed
  std::vector<mx::array> values_;  // likewise
};

}  // namespace vllm_metal
