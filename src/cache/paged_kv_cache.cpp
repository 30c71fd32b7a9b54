// SPDX-License-Identifier: Apache-2.0
#include "cache/paged_kv_cache.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "cache/kv_pools.h"
#include "common/text.h"
#include "kernels/kv_write.h"

namespace vllm_metal {

namespace {

// Blocks of `tokens` tokens.
size_t blocks_of(int64_t tokens, int block_size) {
  return static_cast<size_t>((tokens + block_size - 1) / block_size);
}

// Of the requests' tables, as far as they are in use: [num_requests, the longest], padded.
std::vector<int32_t> packed_tables(const CacheStep& step, int block_size) {
  size_t width = 1;
  for (const int32_t context_len : step.context_lens)
    width = std::max(width, blocks_of(context_len, block_size));
  std::vector<int32_t> tables(step.keys.size() * width, PagedKVCache::kNullBlock);
  for (size_t i = 0; i < step.keys.size(); ++i)
    std::copy_n(step.block_tables[i].begin(), blocks_of(step.context_lens[i], block_size),
                tables.begin() + static_cast<int64_t>(i * width));
  return tables;
}

}  // namespace

PagedKVCache::PagedKVCache(const KVCacheSpec& spec, int64_t num_blocks, int block_size)
    : spec_(spec), num_blocks_(num_blocks), block_size_(block_size) {
  if (std::find(std::begin(kBlockSizes), std::end(kBlockSizes), block_size) ==
      std::end(kBlockSizes))
    throw std::invalid_argument(
        text("[paged_kv_cache] block_size must be 8, 16, 32, 64 or 128 but is ", block_size, "."));
  const int64_t most = std::numeric_limits<int32_t>::max() / block_size;
  if (num_blocks < 2 || num_blocks > most)
    throw std::invalid_argument(
        text("[paged_kv_cache] num_blocks must be from 2 to ", most, " but is ", num_blocks, "."));
  allocate();
#ifndef NDEBUG
  check_invariants(true);
#endif
}

size_t PagedKVCache::pool_bytes() const {
  return static_cast<size_t>(num_blocks_ * block_size_) * spec_.bytes_per_token();
}

void PagedKVCache::allocate() {
  KVPools pools = allocate_pools("paged_kv_cache", spec_, num_blocks_, block_size_);
  keys_ = std::move(pools.keys);
  values_ = std::move(pools.values);
  if (ledger_) clear_null_block();
}

void PagedKVCache::release(RequestKey key) {
  if (ledger_) ledger_->release(key);
}

void PagedKVCache::clear() {
  if (ledger_) ledger_->clear();
  keys_.clear();
  values_.clear();
}

KVView PagedKVCache::view(int layer, const BatchLayout& layout) {
  return {keys_[static_cast<size_t>(layer)], values_[static_cast<size_t>(layer)], layout};
}

BatchLayout PagedKVCache::prepare(const CacheStep& step) {
  for (size_t i = 0; i < step.keys.size(); ++i) check_table(step, i);
  if (keys_.empty()) allocate();
  if (ledger_) {
    check_null_block();
    ledger_->add(step);
  }
  if (!step.block_copies.empty()) {
    for (size_t layer = 0; layer < keys_.size(); ++layer)
      copy_blocks(keys_[layer], values_[layer], step.block_copies, block_size_);
  }
  std::vector<int32_t> slot_mapping;
  slot_mapping.reserve(static_cast<size_t>(step.query_starts.back()));
  for (size_t i = 0; i < step.keys.size(); ++i) {
    const int32_t end = step.context_lens[i];
    for (int32_t position = end - step.num_queries(i); position < end; ++position)
      slot_mapping.push_back(step.block_tables[i][static_cast<size_t>(position / block_size_)] *
                                 block_size_ +
                             position % block_size_);
  }
  return BatchLayout(step.query_starts, step.context_lens, std::move(slot_mapping),
                     packed_tables(step, block_size_), block_size_);
}

void PagedKVCache::check_table(const CacheStep& step, size_t request) const {
  const auto& table = step.block_tables.at(request);
  const size_t needed = blocks_of(step.context_lens[request], block_size_);
  if (table.size() < needed)
    throw std::invalid_argument(text("[paged_kv_cache] request ", request, " of the step has ",
                                     step.context_lens[request], " tokens, ", needed,
                                     " blocks, but a table of ", table.size(), "."));
  for (size_t i = 0; i < needed; ++i)
    if (table[i] <= kNullBlock || table[i] >= num_blocks_)
      throw std::invalid_argument(text("[paged_kv_cache] request ", request,
                                       " of the step must have blocks from 1 to ", num_blocks_ - 1,
                                       " but has ", table[i], "."));
}

void PagedKVCache::check_invariants(bool enabled) {
  ledger_.reset();
  if (!enabled) return;
  ledger_.emplace(block_size_);
  clear_null_block();
}

void PagedKVCache::clear_null_block() {
  std::vector<int32_t> rows(static_cast<size_t>(block_size_));
  std::iota(rows.begin(), rows.end(), kNullBlock * block_size_);
  const BatchLayout layout({0, block_size_}, {block_size_}, std::move(rows), {kNullBlock},
                           block_size_);
  const mx::array zeros = mx::zeros({block_size_, spec_.num_kv_heads, spec_.head_dim}, spec_.dtype);
  for (int layer = 0; layer < spec_.num_layers; ++layer) {
    KVView of_layer = view(layer, layout);
    kv_write(of_layer, zeros, zeros);
  }
}

void PagedKVCache::check_null_block() const {
  const auto is_zero = [this](const mx::array& pool) {
    const mx::array block =
        mx::slice(pool, {0, 0, 0}, {block_size_, spec_.num_kv_heads, spec_.head_dim});
    return mx::all(mx::equal(block, mx::array(0, spec_.dtype))).item<bool>();
  };
  for (size_t layer = 0; layer < keys_.size(); ++layer)
    if (!is_zero(keys_[layer]) || !is_zero(values_[layer]))
      throw std::logic_error(
          text("[paged_kv_cache] layer ", layer, " was written in the null block."));
}

}  // namespace vllm_metal
