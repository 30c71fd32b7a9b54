// SPDX-License-Identifier: Apache-2.0
// What goes into a step and what comes out, as plain data.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "kernels/copy_blocks.h"
#include "sampling/prompt_logprobs.h"
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

// Blocks of the paged KV cache for a request, new or known: all of them, or more.
struct BlockUpdate {
  std::string id;
  std::vector<int32_t> block_ids;  // in the order of the tokens
  bool replaces = false;
};

struct ScheduledRequest {
  std::string id;
  int32_t num_computed_tokens;   // in the cache already
  int32_t num_scheduled_tokens;  // to compute now, at least 1
};

// Blocks of a request's tokens, and where the prefix cache of the MLX-managed KV cache has them.
struct PrefixBlocks {
  std::string id;
  int32_t first_block = 0;      // of the request: the one that blocks[0] has
  std::vector<int32_t> blocks;  // of the prefix cache
};

// What the prefix cache does in a step, in this order. The caller decides what lies where, see
// PrefixIndex.
struct PrefixCacheInput {
  bool clear = false;                        // forgets all and gives its memory back
  std::vector<PrefixBlocks> saves_of_ended;  // of requests that are finished or preempted
  // For requests that are scheduled from there on: their first blocks, as many as are computed.
  std::vector<PrefixBlocks> loads;
  std::vector<PrefixBlocks> saves_of_scheduled;  // among what the step computes, or before
};

struct StepInput {
  std::vector<std::string> finished;     // forgotten first: their ids may be used again
  std::vector<NewRequest> new_requests;  // replace what is known under their id
  std::vector<NewRequest> sessions;      // more input for requests that keep their cache
  std::vector<RequestUpdate> updates;
  std::vector<std::string> preempted;  // keep their state, lose their cache
  std::vector<ScheduledRequest> scheduled;
  std::vector<BlockUpdate> blocks;
  std::vector<BlockCopy> block_copies;  // to be made before the step is computed
  PrefixCacheInput prefix_cache;
};

// What the tokens of a launched step are drawn by, besides the requests' own parameters.
struct DrawInput {
  struct GivenToken {
    size_t scheduled_index;  // which of StepInput::scheduled
    int32_t token_id;
  };
  // Requests with a grammar, and the tokens it allows: [grammar_ids, ceil(vocab_size / 32)] words,
  // lowest bits first.
  std::vector<std::string> grammar_ids;
  std::vector<int32_t> bitmask;
  std::vector<GivenToken> given;  // drawn by the caller
};

struct StepOutput {
  struct PromptScores {
    size_t scheduled_index;
    std::shared_ptr<const PromptLogprobs> scores;
  };
  // One entry a scheduled request, in their order: the token drawn, or kNoToken where the step
  // ended before the last known token, or SampleOutput::kFailed.
  static constexpr int32_t kNoToken = -2;
  std::vector<int32_t> token_ids;
  Logprobs logprobs;  // one row an entry other than kNoToken, in order; width 0 when nobody asked
  std::vector<PromptScores> prompt_logprobs;  // of prompts that this step completed
  // Where the time went: nothing to compute between the step before and the launch of this one,
  // then the logits, then the tokens.
  double idle_ms = 0;
  double forward_ms = 0;
  double sampling_ms = 0;
};

// The output of a step that may still be computing; get() waits for it and throws what went wrong
// in drawing.
using PendingOutput = std::shared_future<std::shared_ptr<StepOutput>>;

}  // namespace vllm_metal
