// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/kv_cache.h"
#include "runner/packed_step.h"
#include "runner/step.h"

namespace vllm_metal {

// A request as the runner remembers it between steps. A preemption or more input makes another
// one, so that steps still under way write into the one they know.
struct RequestState {
  // Stands for a token that is drawn by a step still under way.
  static constexpr int32_t kPending = -1;

  RequestKey key;                  // never used twice, unlike the id
  std::vector<int32_t> token_ids;  // prompt and generated
  std::vector<int32_t> block_ids;  // of the paged KV cache, in the order of the tokens
  std::shared_ptr<const SamplingParams> params;
  uint64_t seed = 0;
  std::shared_ptr<SamplingState> sampling;
  std::shared_ptr<PromptLogprobs> prompt_logprobs;  // null unless wanted and not yet handed out
  int64_t prompt_len = 0;
  int32_t pending_row = 0;  // of a pending last token among those its step draws
};

// A row of logits that a step draws from.
struct Sample {
  size_t scheduled_index;  // which of StepInput::scheduled
  std::shared_ptr<RequestState> request;
};

// A step's batch: what the device computes, and whose tokens it draws.
struct Batch {
  std::shared_ptr<PackedStep> step;
  std::vector<Sample> samples;  // [num_samples], rows of PackedStep::sample_rows
};

// All live requests. Turns what the scheduler says into packed steps.
class InputBatch {
 public:
  explicit InputBatch(const SamplerConfig& config)
      : config_(config), random_(config.seed ? *config.seed : std::random_device{}()) {}

  // Forgets, adds and updates requests. Returns whose cache is free. Throws std::invalid_argument
  // for an unknown request, an empty one or parameters that do not fit the model, and has changed
  // nothing then.
  std::vector<RequestKey> update(const StepInput& input);

  // Throws std::invalid_argument when a request is unknown or its tokens do not reach that far.
  Batch pack(const StepInput& input) const;

  // Throws std::invalid_argument for an unknown request.
  std::vector<CachedBlocks> cached_blocks(const std::vector<PrefixBlocks>& blocks) const;

  size_t size() const { return requests_.size(); }
  // Of the paged KV cache. Throws std::invalid_argument for an unknown request.
  const std::vector<int32_t>& block_ids(const std::string& id) const { return find(id)->block_ids; }

 private:
  using State = std::shared_ptr<RequestState>;
  class Changes;

  State find_or_null(const std::string& id) const;
  State find(const std::string& id) const;
  State make_state(const NewRequest& request);
  State with_tokens(const RequestState& request, const std::vector<int32_t>& token_ids) const;

  const SamplerConfig& config_;
  std::unordered_map<std::string, State> requests_;
  RequestKey next_key_ = 0;
  std::mt19937_64 random_;  // seeds of requests without one
};

}  // namespace vllm_metal
