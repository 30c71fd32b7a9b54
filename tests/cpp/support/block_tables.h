// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

namespace vllm_metal::test {

// Hands out blocks as a scheduler does: any but block 0, in no order, those that were freed last
// first, and some to several requests.
template <typename Id>
class BlockTables {
 public:
  BlockTables(int64_t num_blocks, int block_size)
      : block_size_(block_size),
        free_(static_cast<size_t>(num_blocks - 1)),
        num_owners_(static_cast<size_t>(num_blocks), 0) {
    std::iota(free_.begin(), free_.end(), 1);
    std::shuffle(free_.begin(), free_.end(), std::mt19937(3));
  }

  // Gives a request blocks for so many tokens; returns those that are new.
  std::vector<int32_t> grow(const Id& id, int64_t num_tokens) {
    auto& table = tables_[id];
    std::vector<int32_t> added;
    while (static_cast<int64_t>(table.size()) * block_size_ < num_tokens) {
      if (free_.empty()) throw std::runtime_error("the test needs more blocks");
      added.push_back(free_.back());
      free_.pop_back();
      own(table, added.back());
    }
    return added;
  }

  // Has a request without blocks begin with the first ones of another.
  void share(const Id& id, const Id& owner, size_t num_blocks) {
    const std::vector<int32_t> first(of(owner).begin(),
                                     of(owner).begin() + static_cast<int64_t>(num_blocks));
    for (const int32_t block : first) own(tables_[id], block);
  }

  void release(const Id& id) {
    for (const int32_t block : of(id))
      if (--num_owners_[static_cast<size_t>(block)] == 0) free_.push_back(block);
    tables_.erase(id);
  }

  const std::vector<int32_t>& of(const Id& id) const {
    static const std::vector<int32_t> none;
    const auto found = tables_.find(id);
    return found == tables_.end() ? none : found->second;
  }

  size_t num_free() const { return free_.size(); }
  int block_size() const { return block_size_; }

 private:
  void own(std::vector<int32_t>& table, int32_t block) {
    table.push_back(block);
    ++num_owners_[static_cast<size_t>(block)];
  }

  int block_size_;
  std::vector<int32_t> free_;
  std::vector<int> num_owners_;  // [num_blocks]
  std::map<Id, std::vector<int32_t>> tables_;
};

}  // namespace vllm_metal::test
