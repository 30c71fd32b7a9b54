// SPDX-License-Identifier: Apache-2.0
#include "cache/prefix_index.h"

#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

PrefixIndex::PrefixIndex(int32_t num_blocks) : num_blocks_(num_blocks) {
  if (num_blocks < 1)
    throw std::invalid_argument(
        text("[prefix_cache] num_blocks must be positive but is ", num_blocks, "."));
}

std::vector<int32_t> PrefixIndex::held(Hashes hashes) const {
  std::vector<int32_t> chain;
  for (const std::string_view hash : hashes) {
    const auto found = places_.find(hash);
    if (found == places_.end()) break;
    chain.push_back(found->second);
  }
  return chain;
}

// From the end: a block is always more recent than those after it, so that they go before it.
void PrefixIndex::use(const std::vector<int32_t>& chain) {
  for (auto block = chain.rbegin(); block != chain.rend(); ++block) {
    unlink(*block);
    link_newest(*block);
  }
}

std::vector<int32_t> PrefixIndex::match(Hashes hashes) {
  std::vector<int32_t> chain = held(hashes);
  use(chain);
  return chain;
}

PrefixIndex::Saved PrefixIndex::save(Hashes hashes) {
  std::vector<int32_t> chain = match(hashes);  // so that making places spares its beginning
  const size_t num_held = chain.size();
  while (chain.size() < hashes.size()) {
    const int32_t block = make_place();
    if (block == kNone) break;
    const auto entry = places_.emplace(hashes[chain.size()], block).first;
    blocks_[static_cast<size_t>(block)].hash = &entry->first;
    link_newest(block);
    chain.push_back(block);
  }
  use(chain);
  return {static_cast<int32_t>(num_held),
          {chain.begin() + static_cast<std::ptrdiff_t>(num_held), chain.end()}};
}

int32_t PrefixIndex::make_place() {
  if (blocks_.size() < static_cast<size_t>(num_blocks_)) {
    blocks_.emplace_back();
    return static_cast<int32_t>(blocks_.size()) - 1;
  }
  const int32_t block = oldest_;
  const Block& oldest = blocks_[static_cast<size_t>(block)];
  if (oldest.used_in == step_) return kNone;
  unlink(block);
  places_.erase(places_.find(*oldest.hash));
  return block;
}

void PrefixIndex::unlink(int32_t block) {
  Block& entry = blocks_[static_cast<size_t>(block)];
  (entry.older == kNone ? oldest_ : blocks_[static_cast<size_t>(entry.older)].newer) = entry.newer;
  (entry.newer == kNone ? newest_ : blocks_[static_cast<size_t>(entry.newer)].older) = entry.older;
  entry.older = entry.newer = kNone;
}

void PrefixIndex::link_newest(int32_t block) {
  Block& entry = blocks_[static_cast<size_t>(block)];
  entry.older = newest_;
  entry.newer = kNone;
  entry.used_in = step_;
  (newest_ == kNone ? oldest_ : blocks_[static_cast<size_t>(newest_)].newer) = block;
  newest_ = block;
}

void PrefixIndex::clear() {
  places_.clear();
  blocks_.clear();
  oldest_ = newest_ = kNone;
}

}  // namespace vllm_metal
