// SPDX-License-Identifier: Apache-2.0
#include "cache/block_ledger.h"

#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

void BlockLedger::add(const CacheStep& step) {
  for (size_t i = 0; i < step.keys.size(); ++i)
    requests_[step.keys[i]].table = step.block_tables[i];
  const Owners owners = owners_of_blocks();
  std::unordered_set<int64_t> written;
  for (size_t i = 0; i < step.keys.size(); ++i) {
    const int32_t end = step.context_lens[i];
    for (int32_t position = end - step.num_queries(i); position < end; ++position)
      check_write(step.keys[i], position, owners, written);
  }
  for (size_t i = 0; i < step.keys.size(); ++i)
    requests_.at(step.keys[i]).num_written = step.context_lens[i];
}

BlockLedger::Owners BlockLedger::owners_of_blocks() const {
  Owners owners;
  for (const auto& [key, request] : requests_)
    for (size_t i = 0; i < request.table.size(); ++i) owners.insert({request.table[i], {key, i}});
  return owners;
}

void BlockLedger::check_write(RequestKey key, int32_t position, const Owners& owners,
                              std::unordered_set<int64_t>& written) const {
  const auto index = static_cast<size_t>(position / block_size_);
  const int32_t block = requests_.at(key).table.at(index);
  const auto complain = [&](const char* what) {
    throw std::logic_error(text("[paged_kv_cache] token ", position, " of request ", key,
                                " goes to block ", block, ", ", what, "."));
  };
  if (!written.insert(int64_t{block} * block_size_ + position % block_size_).second)
    complain("to the place of another token of this step");
  const auto [first, last] = owners.equal_range(block);
  for (auto owner = first; owner != last; ++owner) {
    const auto& [other, other_index] = owner->second;
    if (other_index != index) complain("which is another part of another request");
    // A prefix may be shared within the step that computes it, no later.
    if (other != key && requests_.at(other).num_written > position)
      complain("where another request's token lies");
  }
}

}  // namespace vllm_metal
