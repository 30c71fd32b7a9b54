// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cache/kv_cache.h"

namespace vllm_metal {

// Keeps the tables of all live requests to check, step by step, that the scheduler's blocks and
// what is written to them agree. For debug builds and tests: it walks every table in every step.
class BlockLedger {
 public:
  explicit BlockLedger(int block_size) : block_size_(block_size) {}

  // Takes over the tables of a step. Throws std::logic_error when two tokens of the step go to one
  // place, when a token goes to where another request's token lies since an earlier step, or to a
  // block that another request has as another part of its table.
  void add(const CacheStep& step);
  void release(RequestKey key) { requests_.erase(key); }
  void clear() { requests_.clear(); }

 private:
  struct Request {
    std::vector<int32_t> table;
    int32_t num_written = 0;  // tokens cached once its last step is done
  };
  // Who has a block, and as which of its blocks.
  struct Owner {
    RequestKey key;
    size_t index;
  };

  using Owners = std::unordered_multimap<int32_t, Owner>;  // by block

  Owners owners_of_blocks() const;
  void check_write(RequestKey key, int32_t position, const Owners& owners,
                   std::unordered_set<int64_t>& written) const;

  int block_size_;
  std::unordered_map<RequestKey, Request> requests_;
};

}  // namespace vllm_metal
