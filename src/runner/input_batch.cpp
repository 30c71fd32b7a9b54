// SPDX-License-Identifier: Apache-2.0
#include "runner/input_batch.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "common/text.h"

namespace vllm_metal {

namespace {

bool wants_prompt_logprobs(const SamplingParams& params) {
  return params.num_prompt_logprobs || !params.prompt_logprob_token_ids.empty();
}

// The rows of [begin, end) whose logits score a token of the prompt: all but its last.
void add_prompt_rows(const RequestState& request, int32_t begin, int32_t end, int32_t first_row,
                     PackedStep& step) {
  if (request.prompt_logprobs == nullptr) return;
  const auto last = static_cast<int32_t>(request.prompt_len) - 1;
  const int32_t count = std::min(end, last) - begin;
  if (count > 0) step.prompt_rows.push_back({request.prompt_logprobs, first_row, begin, count});
}

}  // namespace

const InputBatch::State& InputBatch::find(const std::string& id) const {
  auto found = requests_.find(id);
  if (found == requests_.end())
    throw std::invalid_argument(text("[runner] request '", id, "' is unknown."));
  return found->second;
}

InputBatch::State InputBatch::make_state(const NewRequest& request) {
  if (request.token_ids.empty())
    throw std::invalid_argument(text("[runner] request '", request.id, "' has no tokens."));
  auto state = std::make_shared<RequestState>();
  state->token_ids = request.token_ids;
  state->params = std::make_shared<const SamplingParams>(request.sampling);
  const auto& seed = request.sampling.seed;
  state->seed = seed ? static_cast<uint64_t>(*seed) : random_();
  state->prompt_len = static_cast<int64_t>(request.token_ids.size()) - request.num_output_tokens;
  state->sampling = std::make_shared<SamplingState>(state->params, state->seed, config_,
                                                    state->token_ids, request.num_output_tokens);
  // A request with output has had its prompt's scores.
  if (wants_prompt_logprobs(*state->params) && request.num_output_tokens == 0)
    state->prompt_logprobs =
        std::make_shared<PromptLogprobs>(state->params, config_, state->token_ids);
  return state;
}

InputBatch::State InputBatch::with_tokens(const RequestState& request,
                                          const std::vector<int32_t>& token_ids) const {
  auto state = std::make_shared<RequestState>(request);
  state->token_ids = token_ids;
  const int64_t num_output_tokens = static_cast<int64_t>(token_ids.size()) - request.prompt_len;
  state->sampling = std::make_shared<SamplingState>(state->params, state->seed, config_,
                                                    state->token_ids, num_output_tokens);
  return state;
}

std::vector<RequestKey> InputBatch::update(const StepInput& input) {
  std::vector<RequestKey> released;
  std::vector<State> added, continued;
  for (const auto& request : input.new_requests) added.push_back(make_state(request));
  for (const auto& request : input.sessions) {
    continued.push_back(make_state(request));
    continued.back()->key = find(request.id)->key;
  }
  auto forget = [&](const std::string& id) {
    auto found = requests_.find(id);
    if (found == requests_.end()) return;  // the scheduler may name requests that never ran
    released.push_back(found->second->key);
    requests_.erase(found);
  };
  for (const auto& id : input.finished) forget(id);
  for (const auto& id : input.preempted)
    if (auto found = requests_.find(id); found != requests_.end())
      released.push_back(found->second->key);
  for (size_t i = 0; i < added.size(); ++i) {
    forget(input.new_requests[i].id);
    added[i]->key = next_key_++;
    requests_[input.new_requests[i].id] = std::move(added[i]);
  }
  for (size_t i = 0; i < continued.size(); ++i)
    requests_[input.sessions[i].id] = std::move(continued[i]);
  for (const auto& update : input.updates)
    requests_[update.id] = with_tokens(*find(update.id), update.token_ids);
  for (const auto& update : input.blocks) {
    auto& block_ids = find(update.id)->block_ids;
    if (update.replaces) block_ids.clear();
    block_ids.insert(block_ids.end(), update.block_ids.begin(), update.block_ids.end());
  }
  return released;
}

Batch InputBatch::pack(const StepInput& input) const {
  Batch batch{std::make_shared<PackedStep>(), {}};
  PackedStep& step = *batch.step;
  CacheStep& cache = step.cache;
  cache.query_starts.push_back(0);
  cache.block_copies = input.block_copies;
  for (size_t i = 0; i < input.scheduled.size(); ++i) {
    const auto& scheduled = input.scheduled[i];
    const State& request = find(scheduled.id);
    const auto known = static_cast<int32_t>(request->token_ids.size());
    const int32_t begin = scheduled.num_computed_tokens,
                  end = begin + scheduled.num_scheduled_tokens;
    if (begin < 0 || scheduled.num_scheduled_tokens < 1 || end > known)
      throw std::invalid_argument(text("[runner] request '", scheduled.id, "' has ", known,
                                       " tokens but tokens ", begin, " to ", end,
                                       " were scheduled."));
    add_prompt_rows(*request, begin, end, cache.query_starts.back(), step);
    for (int32_t position = begin; position < end; ++position) {
      const int32_t token = request->token_ids[static_cast<size_t>(position)];
      if (token == RequestState::kPending)
        step.pending.push_back({step.token_ids.size(), request->pending_row});
      step.token_ids.push_back(token == RequestState::kPending ? 0 : token);
      step.positions.push_back(position);
    }
    cache.keys.push_back(request->key);
    cache.query_starts.push_back(static_cast<int32_t>(step.token_ids.size()));
    cache.context_lens.push_back(end);
    cache.block_tables.push_back(request->block_ids);
    step.request_lens.push_back(known);
    if (end == known) {
      step.sample_rows.push_back(cache.query_starts.back() - 1);
      batch.samples.push_back({i, request});
    }
  }
  return batch;
}

}  // namespace vllm_metal
