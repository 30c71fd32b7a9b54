// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runner/step.h"
#include "support/block_tables.h"

namespace vllm_metal::test {

// Adds to steps what vLLM's scheduler says of the paged KV cache's blocks.
class BlockScheduler {
 public:
  BlockScheduler(int64_t num_blocks, int block_size) : tables_(num_blocks, block_size) {}

  // Has a request that is about to start or to resume begin with the first blocks of another: a hit
  // in the prefix cache. Returns how many of its tokens are computed thereby.
  int32_t share(const std::string& id, const std::string& owner, size_t num_blocks) {
    tables_.release(id);
    begun_.insert(id);
    tables_.share(id, owner, num_blocks);
    return static_cast<int32_t>(num_blocks) * tables_.block_size();
  }

  // Has a request that comes anew under its id keep its blocks: more input for a session.
  void keep(const std::string& id) { begun_.insert(id); }

  // The step, with blocks for its tokens. Without: those of requests that end or are preempted.
  StepInput with_blocks(StepInput input) {
    for (const auto& ids : {input.finished, input.preempted})
      for (const auto& id : ids)
        if (begun_.count(id) == 0) tables_.release(id);
    std::set<std::string> whole;
    const auto start = [&](const std::string& id) {
      if (begun_.erase(id) == 0) tables_.release(id);
      whole.insert(id);
    };
    for (const auto& request : input.new_requests) start(request.id);
    for (const auto& update : input.updates) start(update.id);
    for (const auto& [id, computed, count] : input.scheduled) {
      const auto added = tables_.grow(id, computed + count);
      if (whole.count(id) > 0) {
        input.blocks.push_back({id, tables_.of(id), true});
      } else if (!added.empty()) {
        input.blocks.push_back({id, added, false});
      }
    }
    return input;
  }

  const std::vector<int32_t>& table(const std::string& id) const { return tables_.of(id); }
  size_t num_free() const { return tables_.num_free(); }

 private:
  BlockTables<std::string> tables_;
  std::set<std::string> begun_;  // that have blocks before their step
};

}  // namespace vllm_metal::test
