// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "cache/kv_cache.h"

namespace vllm_metal {

// The MLX-managed KV cache: each request's tokens lie in one contiguous range of rows.
//
//   one slab a layer for keys and one for values, [num_rows, num_kv_heads, head_dim]
//   | request 7: used ...... spare | request 9: used .. spare | free ......... |
//     first_row                      first_row
//
// All requests share a slab, so that a kernel gets two arrays a layer whatever the batch. A
// range grows in place while rows behind it are free, else it moves; slabs grow by halves of their
// size, shrink when most rows are free and go when the last request ends. Row numbers hold for
// all layers. Changes are graph operations, evaluated with the next step; steps in flight keep
// reading the rows they were given, since the stream runs in order.
class ContiguousKVCache final : public KVCache {
 public:
  // `max_tokens`: the most tokens that live requests hold together, each counted in whole blocks
  // of `block_size`, as vLLM's scheduler counts.
  ContiguousKVCache(const KVCacheSpec& spec, int64_t max_tokens, int block_size);

  // Makes room for `num_tokens` tokens of a request; keeps what it holds. Throws
  // std::runtime_error when max_tokens does not allow it or there is no memory; the cache is as
  // before then.
  void reserve(RequestKey key, int64_t num_tokens);

  // Reserves for all requests, then says where they came to lie.
  BatchLayout prepare(const CacheStep& step) override;
  void release(RequestKey key) override;
  void clear() override;

  // Row of the request's first token. Changes when any request is reserved for.
  int32_t first_row(RequestKey key) const { return ranges_.at(key).start; }
  // Tokens that it has room for in use; 0 for an unknown request.
  int64_t num_tokens(RequestKey key) const;

  KVView view(int layer, const BatchLayout& layout) override;

  int64_t num_rows() const { return num_rows_; }
  size_t num_requests() const { return ranges_.size(); }
  size_t nbytes() const override {
    return static_cast<size_t>(num_rows_) * spec_.bytes_per_token();
  }

 private:
  struct Range {
    int32_t start = 0;
    int64_t capacity = 0;
    int64_t num_tokens = 0;
  };

  void make_room(Range& range, int64_t num_tokens);
  // Rows of the slabs in which ranges find `more` rows that they do not find now.
  int64_t rows_to_grow_to(int64_t more) const;
  // Ranges by their start.
  std::vector<Range*> ordered_ranges();
  bool extend_in_place(Range& range, int64_t capacity);
  // First row of a hole of that many rows; -1 if there is none.
  int64_t find_hole(int64_t rows);
  void move_range(Range& range, int32_t new_start, int64_t new_capacity);
  // Packs all ranges, each in whole blocks, into slabs of `new_rows` rows, at least
  // reserved_tokens(); spare rows are shared out equally.
  void rebuild(int64_t new_rows);
  // The same to give memory back, if there is enough to do so.
  void shrink(int64_t new_rows);
  // New slabs, [source_rows.size(), num_kv_heads, head_dim] each: the rows of `slabs` if any.
  std::vector<mx::array> resized_slabs(const std::vector<mx::array>& slabs,
                                       const std::vector<int32_t>& source_rows) const;
  int64_t reserved_tokens() const;
  int64_t held_rows() const;  // of all ranges
  int64_t whole_blocks(int64_t tokens) const;

  KVCacheSpec spec_;
  int64_t max_rows_;
  int block_size_;
  int64_t num_rows_ = 0;
  std::map<RequestKey, Range> ranges_;
  std::vector<mx::array> keys_;    // one a layer, [num_rows, num_kv_heads, head_dim]
  std::vector<mx::array> values_;  // likewise
};

}  // namespace vllm_metal
