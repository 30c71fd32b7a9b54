// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/contiguous_kv_cache.h"
#include "runner/step.h"

namespace vllm_metal {

// A request as the runner remembers it between steps.
struct RequestState {
  ContiguousKVCache::RequestKey key;  // never used twice, unlike the id
  std::vector<int32_t> token_ids;     // prompt and generated
  int64_t num_output_tokens = 0;
  SamplingParams sampling;
  uint64_t seed = 0;
};

// One step's batch, packed: requests one after the other in the order scheduled.
struct PackedStep {
  struct Sample {
    size_t scheduled_index;  // which of StepInput::scheduled
    RequestState* request;
  };
  std::vector<RequestState*> requests;  // [num_requests]
  std::vector<int32_t> token_ids;       // [num_tokens]
  std::vector<int32_t> positions;       // [num_tokens]
  std::vector<int32_t> query_starts;    // [num_requests + 1]
  std::vector<int32_t> context_lens;    // [num_requests]
  std::vector<int32_t> request_lens;    // [num_requests] known tokens
  std::vector<int32_t> sample_rows;     // [num_samples] row of each request's last token
  std::vector<Sample> samples;          // [num_samples]
};

// All live requests. Turns what the scheduler says into packed steps.
class InputBatch {
 public:
  InputBatch() : random_(std::random_device{}()) {}

  // Forgets, adds and updates requests; frees the cache of those that lost theirs. Checks before
  // it changes: throws std::invalid_argument for an unknown request or an empty one.
  void update(const StepInput& input, ContiguousKVCache& cache);

  // Throws std::invalid_argument when a request is unknown or its tokens do not reach that far.
  PackedStep pack(const StepInput& input);

  size_t size() const { return requests_.size(); }

 private:
  RequestState& find(const std::string& id);

  std::unordered_map<std::string, RequestState> requests_;
  ContiguousKVCache::RequestKey next_key_ = 0;
  std::mt19937_64 random_;  // seeds of requests without one
};

}  // namespace vllm_metal
