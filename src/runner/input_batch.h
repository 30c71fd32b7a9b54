// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/contiguous_kv_cache.h"
#include "runner/step.h"

namespace vllm_metal {

// A request as the runner remembers it between steps. A preemption or more input makes another
// one, so that steps still under way write into the one they know.
struct RequestState {
  // Stands for a token that is drawn by a step still under way.
  static constexpr int32_t kPending = -1;

  ContiguousKVCache::RequestKey key;  // never used twice, unlike the id
  std::vector<int32_t> token_ids;     // prompt and generated
  std::shared_ptr<const SamplingParams> params;
  uint64_t seed = 0;
  std::shared_ptr<SamplingState> sampling;
  std::shared_ptr<PromptLogprobs> prompt_logprobs;  // null unless wanted and not yet handed out
  int64_t prompt_len = 0;
  int32_t pending_row = 0;  // of a pending last token among those its step draws
};

// One step's batch, packed: requests one after the other in the order scheduled.
struct PackedStep {
  struct PendingToken {
    size_t index;  // among token_ids, which holds 0 there
    int32_t row;   // of the tokens that the step before draws
  };
  struct Sample {
    size_t scheduled_index;  // which of StepInput::scheduled
    std::shared_ptr<RequestState> request;
  };
  // Rows of a prompt whose logits score its tokens.
  struct PromptRows {
    std::shared_ptr<PromptLogprobs> scores;
    int32_t first_row;  // among the step's tokens
    int32_t first_position;
    int32_t count;
  };
  std::vector<std::string> ids;                         // [num_requests]
  std::vector<std::shared_ptr<RequestState>> requests;  // [num_requests]
  std::vector<int32_t> token_ids;                       // [num_tokens]
  std::vector<PendingToken> pending;
  std::vector<int32_t> positions;     // [num_tokens]
  std::vector<int32_t> query_starts;  // [num_requests + 1]
  std::vector<int32_t> context_lens;  // [num_requests]
  std::vector<int32_t> request_lens;  // [num_requests] known tokens
  std::vector<int32_t> sample_rows;   // [num_samples] row of each request's last token
  std::vector<Sample> samples;        // [num_samples]
  std::vector<PromptRows> prompt_rows;
};

// All live requests. Turns what the scheduler says into packed steps.
class InputBatch {
 public:
  explicit InputBatch(const SamplerConfig& config)
      : config_(config), random_(std::random_device{}()) {}

  // Forgets, adds and updates requests; frees the cache of those that lost theirs. Checks before
  // it changes: throws std::invalid_argument for an unknown request, an empty one or parameters
  // that do not fit the model.
  void update(const StepInput& input, ContiguousKVCache& cache);

  // Throws std::invalid_argument when a request is unknown or its tokens do not reach that far.
  PackedStep pack(const StepInput& input);

  size_t size() const { return requests_.size(); }

 private:
  using State = std::shared_ptr<RequestState>;

  const State& find(const std::string& id) const;
  State make_state(const NewRequest& request);
  State with_tokens(const RequestState& request, const std::vector<int32_t>& token_ids) const;

  const SamplerConfig& config_;
  std::unordered_map<std::string, State> requests_;
  ContiguousKVCache::RequestKey next_key_ = 0;
  std::mt19937_64 random_;  // seeds of requests without one
};

}  // namespace vllm_metal
