// SPDX-License-Identifier: Apache-2.0
#include "cache/prefix_cache.h"

#include <limits>
#include <stdexcept>
#include <utility>

#include "cache/kv_pools.h"
#include "common/text.h"
#include "kernels/kv_write.h"

namespace vllm_metal {

namespace {

bool are_adjacent(const std::vector<int32_t>& rows) {
  for (size_t i = 1; i < rows.size(); ++i)
    if (rows[i] != rows[i - 1] + 1) return false;
  return true;
}

// The tokens of one step of writing, as kv_write wants to know of them.
BatchLayout layout_of(std::vector<int32_t> rows) {
  const auto num_tokens = static_cast<int32_t>(rows.size());
  return BatchLayout({0, num_tokens}, {num_tokens}, std::move(rows), {0}, 0);
}

// Reads rows of a layer: where they are if they are adjacent, else gathered.
class RowReader {
 public:
  explicit RowReader(const std::vector<int32_t>& rows)
      : first_(rows.front()),
        count_(static_cast<int>(rows.size())),
        adjacent_(are_adjacent(rows)),
        rows_(rows.begin(), {count_}, mx::int32) {}

  // [num_rows, num_kv_heads, head_dim] -> [count, num_kv_heads, head_dim]
  mx::array operator()(const mx::array& layer) const {
    if (!adjacent_) return mx::take(layer, rows_, 0);
    return mx::slice(layer, {first_, 0, 0}, {first_ + count_, layer.shape(1), layer.shape(2)});
  }

 private:
  int first_;
  int count_;
  bool adjacent_;
  mx::array rows_;  // int32 [count]
};

}  // namespace

PrefixCache::PrefixCache(const KVCacheSpec& spec, int64_t num_blocks, int block_size)
    : spec_(spec), num_blocks_(num_blocks), block_size_(block_size) {
  if (block_size < 1)
    throw std::invalid_argument(
        text("[prefix_cache] block_size must be positive but is ", block_size, "."));
  const int64_t most = std::numeric_limits<int32_t>::max() / block_size;
  if (num_blocks < 1 || num_blocks > most)
    throw std::invalid_argument(
        text("[prefix_cache] num_blocks must be from 1 to ", most, " but is ", num_blocks, "."));
}

size_t PrefixCache::nbytes() const {
  if (keys_.empty()) return 0;
  return static_cast<size_t>(num_blocks_ * block_size_) * spec_.bytes_per_token();
}

void PrefixCache::allocate() {
  KVPools pools = allocate_pools("prefix_cache", spec_, num_blocks_, block_size_);
  keys_ = std::move(pools.keys);
  values_ = std::move(pools.values);
}

void PrefixCache::clear() {
  keys_.clear();
  values_.clear();
}

std::vector<mx::array> PrefixCache::arrays() const {
  std::vector<mx::array> result = keys_;
  result.insert(result.end(), values_.begin(), values_.end());
  return result;
}

PrefixCache::Rows PrefixCache::rows_of(const ContiguousKVCache& cache,
                                       const std::vector<CachedBlocks>& requests) const {
  Rows rows;
  for (const auto& [key, first_block, blocks] : requests) {
    const int64_t begin = static_cast<int64_t>(first_block) * block_size_;
    const int64_t end = begin + static_cast<int64_t>(blocks.size()) * block_size_;
    if (first_block < 0 || end > cache.num_tokens(key))
      throw std::invalid_argument(text("[prefix_cache] tokens ", begin, " to ", end,
                                       " were named of a request that holds ",
                                       cache.num_tokens(key), "."));
    auto theirs = static_cast<int32_t>(cache.first_row(key) + begin);
    for (const int32_t block : blocks) {
      if (block < 0 || block >= num_blocks_)
        throw std::invalid_argument(text("[prefix_cache] block must be from 0 to ", num_blocks_ - 1,
                                         " but is ", block, "."));
      for (int32_t i = 0; i < block_size_; ++i) {
        rows.ours.push_back(block * block_size_ + i);
        rows.theirs.push_back(theirs++);
      }
    }
  }
  return rows;
}

void PrefixCache::save(ContiguousKVCache& cache, const std::vector<CachedBlocks>& requests) {
  // A request's tokens are adjacent, so that kv_write reads them where they are: what is written
  // over them next waits for it, which it would not for MLX's reading kernels (kernel_launch.h).
  std::vector<Rows> of_requests;  // checked before anything is written
  for (const CachedBlocks& request : requests) of_requests.push_back(rows_of(cache, {request}));
  for (const Rows& rows : of_requests) {
    if (rows.ours.empty()) continue;
    if (keys_.empty()) allocate();
    const BatchLayout target = layout_of(rows.ours);
    const RowReader read(rows.theirs);
    for (size_t layer = 0; layer < keys_.size(); ++layer) {
      const KVView source = cache.view(static_cast<int>(layer), target);
      KVView ours{keys_[layer], values_[layer], target};
      kv_write(ours, read(source.keys), read(source.values));
    }
  }
}

void PrefixCache::load(ContiguousKVCache& cache, const std::vector<CachedBlocks>& requests) {
  const Rows rows = rows_of(cache, requests);
  if (rows.ours.empty()) return;
  if (keys_.empty()) throw std::invalid_argument("[prefix_cache] nothing is cached.");
  const BatchLayout target = layout_of(rows.theirs);
  const RowReader read(rows.ours);
  for (size_t layer = 0; layer < keys_.size(); ++layer) {
    KVView theirs = cache.view(static_cast<int>(layer), target);
    kv_write(theirs, read(keys_[layer]), read(values_[layer]));
  }
}

}  // namespace vllm_metal
