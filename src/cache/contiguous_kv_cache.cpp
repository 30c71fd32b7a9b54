// SPDX-License-Identifier: Apache-2.0
#include "cache/contiguous_kv_cache.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "common/log.h"
#include "common/mlx_buffer.h"
#include "common/text.h"
#include "kernels/kv_write.h"

namespace vllm_metal {

namespace {

// Rows by which a range grows: small against a model's memory, large against the moves it saves.
constexpr int64_t kChunk = 256;

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

ContiguousKVCache::ContiguousKVCache(const KVCacheSpec& spec, int64_t max_tokens, int block_size)
    : spec_(spec), max_rows_(max_tokens), block_size_(block_size) {
  if (max_tokens < 1 || max_tokens > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument(
        text("[kv_cache] max_tokens must be from 1 to 2^31 - 1 but is ", max_tokens, "."));
  if (block_size < 1)
    throw std::invalid_argument(
        text("[kv_cache] block_size must be positive but is ", block_size, "."));
  rebuild(0);
}

int64_t ContiguousKVCache::whole_blocks(int64_t tokens) const {
  return round_up(tokens, block_size_);
}

int64_t ContiguousKVCache::reserved_tokens() const {
  return std::accumulate(ranges_.begin(), ranges_.end(), int64_t{0},
                         [this](int64_t sum, const auto& entry) {
                           return sum + whole_blocks(entry.second.num_tokens);
                         });
}

int64_t ContiguousKVCache::held_rows() const {
  return std::accumulate(
      ranges_.begin(), ranges_.end(), int64_t{0},
      [](int64_t sum, const auto& entry) { return sum + entry.second.capacity; });
}

int64_t ContiguousKVCache::num_tokens(RequestKey key) const {
  const auto found = ranges_.find(key);
  return found == ranges_.end() ? 0 : found->second.num_tokens;
}

void ContiguousKVCache::reserve(RequestKey key, int64_t num_tokens) {
  auto found = ranges_.find(key);
  const int64_t held = found == ranges_.end() ? 0 : whole_blocks(found->second.num_tokens);
  if (reserved_tokens() - held + whole_blocks(num_tokens) > max_rows_)
    throw std::runtime_error(text("[kv_cache] ", num_tokens, " tokens do not fit: ",
                                  reserved_tokens() - held, " of ", max_rows_, " are in use."));
  const auto [entry, is_new] = ranges_.try_emplace(key);
  const Range before = entry->second;
  try {
    make_room(entry->second, num_tokens);
  } catch (...) {  // no memory: a range that is listed has its rows
    if (is_new) {
      ranges_.erase(entry);
    } else {
      entry->second = before;
    }
    throw;
  }
}

void ContiguousKVCache::make_room(Range& range, int64_t num_tokens) {
  const int64_t capacity =
      std::min(round_up(num_tokens, kChunk), whole_blocks(num_tokens) + kChunk);
  if (num_tokens > range.capacity && !extend_in_place(range, capacity)) {
    const int64_t start = find_hole(capacity);
    if (start < 0) {
      range.num_tokens = num_tokens;
      rebuild(rows_to_grow_to(capacity));
      return;
    }
    move_range(range, static_cast<int32_t>(start), capacity);
  }
  range.num_tokens = num_tokens;
}

int64_t ContiguousKVCache::rows_to_grow_to(int64_t more) const {
  if (num_rows_ == max_rows_) return max_rows_;  // pack: every request fits in its whole blocks
  // Packed, a range may take more than it has now: whole blocks.
  return std::min(max_rows_,
                  std::max({held_rows() + more, reserved_tokens(), num_rows_ + num_rows_ / 2}));
}

BatchLayout ContiguousKVCache::prepare(const CacheStep& step) {
  // All room first: making it for one request can move another.
  const size_t num_requests = step.keys.size();
  for (size_t i = 0; i < num_requests; ++i) reserve(step.keys[i], step.context_lens[i]);
  std::vector<int32_t> first_rows, slot_mapping;
  first_rows.reserve(num_requests);
  slot_mapping.reserve(static_cast<size_t>(step.query_starts.back()));
  for (size_t i = 0; i < num_requests; ++i) {
    first_rows.push_back(first_row(step.keys[i]));
    const int32_t end = first_rows.back() + step.context_lens[i];
    for (int32_t row = end - step.num_queries(i); row < end; ++row) slot_mapping.push_back(row);
  }
  return BatchLayout(step.query_starts, step.context_lens, std::move(slot_mapping),
                     std::move(first_rows), 0);
}

void ContiguousKVCache::release(RequestKey key) {
  ranges_.erase(key);
  if (ranges_.empty()) {
    rebuild(0);
    return;
  }
  const int64_t used = held_rows();
  if (used * 4 > num_rows_ || num_rows_ <= 4 * kChunk) return;
  const int64_t fewer = std::max({used, reserved_tokens(), num_rows_ / 2});
  if (fewer < num_rows_) shrink(fewer);
}

void ContiguousKVCache::shrink(int64_t new_rows) {
  try {
    rebuild(new_rows);
  } catch (const std::runtime_error& error) {  // no memory for both: all stays where it is
    log(LogLevel::kDebug, text("The KV cache keeps its size: ", error.what()));
  }
}

void ContiguousKVCache::clear() {
  ranges_.clear();
  rebuild(0);
}

KVView ContiguousKVCache::view(int layer, const BatchLayout& layout) {
  return {keys_[static_cast<size_t>(layer)], values_[static_cast<size_t>(layer)], layout};
}

std::vector<ContiguousKVCache::Range*> ContiguousKVCache::ordered_ranges() {
  std::vector<Range*> ordered;
  for (auto& [key, range] : ranges_)
    if (range.capacity > 0) ordered.push_back(&range);
  std::sort(ordered.begin(), ordered.end(),
            [](const Range* a, const Range* b) { return a->start < b->start; });
  return ordered;
}

bool ContiguousKVCache::extend_in_place(Range& range, int64_t capacity) {
  if (range.capacity == 0) return false;
  int64_t limit = num_rows_;
  for (const auto& [key, other] : ranges_)
    if (other.capacity > 0 && other.start > range.start)
      limit = std::min<int64_t>(limit, other.start);
  if (range.start + capacity > limit) return false;
  range.capacity = capacity;
  return true;
}

int64_t ContiguousKVCache::find_hole(int64_t rows) {
  int64_t end = 0;  // of the range before
  for (const Range* range : ordered_ranges()) {
    if (range->start - end >= rows) return end;
    end = range->start + range->capacity;
  }
  return num_rows_ - end >= rows ? end : -1;
}

void ContiguousKVCache::move_range(Range& range, int32_t new_start, int64_t new_capacity) {
  if (range.num_tokens > 0) {
    const auto tokens = static_cast<int32_t>(range.num_tokens);
    std::vector<int32_t> rows(static_cast<size_t>(tokens));
    std::iota(rows.begin(), rows.end(), new_start);
    const BatchLayout target({0, tokens}, {tokens}, std::move(rows), {new_start}, 0);
    const mx::Shape begin{range.start, 0, 0},
        end{range.start + tokens, spec_.num_kv_heads, spec_.head_dim};
    for (int layer = 0; layer < spec_.num_layers; ++layer) {
      KVView target_view = view(layer, target);
      kv_write(target_view, mx::slice(target_view.keys, begin, end),
               mx::slice(target_view.values, begin, end));
    }
  }
  range.start = new_start;
  range.capacity = new_capacity;
}

void ContiguousKVCache::rebuild(int64_t new_rows) {
  const int64_t needed = reserved_tokens();
  if (new_rows < needed)
    throw std::logic_error(
        text("[kv_cache] ", new_rows, " rows cannot hold ", needed, " tokens in whole blocks."));
  const int64_t spare =
      ranges_.empty() ? 0 : (new_rows - needed) / static_cast<int64_t>(ranges_.size());
  std::vector<int32_t> source(static_cast<size_t>(new_rows), 0);  // the old row of each new one
  // A range that is new has no rows yet: it comes last.
  auto ordered = ordered_ranges();
  for (auto& [key, range] : ranges_)
    if (range.capacity == 0) ordered.push_back(&range);
  std::vector<Range> placed;  // what they become once there is memory for all slabs
  int64_t next = 0;
  for (const Range* range : ordered) {
    const int64_t capacity = whole_blocks(range->num_tokens) + std::min(spare, kChunk);
    for (int64_t i = 0; i < std::min(range->num_tokens, range->capacity); ++i)
      source[static_cast<size_t>(next + i)] = static_cast<int32_t>(range->start + i);
    placed.push_back({static_cast<int32_t>(next), capacity, range->num_tokens});
    next += capacity;
  }
  expect_memory(static_cast<size_t>(new_rows) * spec_.bytes_per_token());
  auto keys = resized_slabs(keys_, source);
  auto values = resized_slabs(values_, source);
  for (size_t i = 0; i < ordered.size(); ++i) *ordered[i] = placed[i];
  keys_ = std::move(keys);
  values_ = std::move(values);
  num_rows_ = new_rows;
}

std::vector<mx::array> ContiguousKVCache::resized_slabs(
    const std::vector<mx::array>& slabs, const std::vector<int32_t>& source_rows) const {
  const auto new_rows = static_cast<int>(source_rows.size());
  const bool copy = num_rows_ > 0 && new_rows > 0;
  const mx::array rows(source_rows.begin(), {new_rows}, mx::int32);
  std::vector<mx::array> resized;
  for (int layer = 0; layer < spec_.num_layers; ++layer)
    resized.push_back(
        copy ? mx::take(slabs[static_cast<size_t>(layer)], rows, 0)
             : uninitialized({new_rows, spec_.num_kv_heads, spec_.head_dim}, spec_.dtype));
  return resized;
}

}  // namespace vllm_metal
