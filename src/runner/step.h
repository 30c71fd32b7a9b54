// SPDX-License-Identifier: Apache-2.0
// What goes into a step and what comes out, as plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sampling/sampler.h"
#include "sampling/sampling_params.h"

namespace vllm_metal {

struct NewRequest {
  std::string id;
  std::vector<int32_t> token_ids;  // the prompt, and what was generated of it before a preemption
  SamplingParams sampling;
  int32_t num_output_tokens = 0;  // how many of token_ids were generated
};

// The tokens of a known request, all of them: after a preemption.
struct RequestUpdate {
  std::string id;
  std::vector<int32_t> token_ids;
};

struct ScheduledRequest {
  std::string id;
  int32_t num_computed_tokens;   // in the cache already
  int32_t num_scheduled_tokens;  // to compute now, at least 1
};

struct StepInput {
  std::vector<std::string> finished;     // forgotten first: their ids may be used again
  std::vector<NewRequest> new_requests;  // replace what is known under their id
  std::vector<RequestUpdate> updates;
  std::vector<std::string> preempted;  // keep their state, lose their cache
  std::vector<ScheduledRequest> scheduled;
};

struct StepOutput {
  // One entry a scheduled request, in their order: the token drawn, or kNoToken where the step
  // ended before the last known token, or SampleOutput::kFailed.
  static constexpr int32_t kNoToken = -2;
  std::vector<int32_t> token_ids;
  Logprobs logprobs;  // one row an entry other than kNoToken, in order; width 0 when nobody asked
};

}  // namespace vllm_metal
