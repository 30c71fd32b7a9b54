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

[[noreturn]] void refuse_unknown(const std::string& id) {
  throw std::invalid_argument(text("[runner] request '", id, "' is unknown."));
}

}  // namespace

// What a step changes, collected first, since any of it may be refused.
class InputBatch::Changes {
 public:
  explicit Changes(InputBatch& batch) : batch_(batch), next_key_(batch.next_key_) {}

  void forget(const std::string& id) {
    if (release(id)) requests_[id] = nullptr;
  }

  // The scheduler may name requests that never ran.
  bool release(const std::string& id) {
    const State state = find_or_null(id);
    if (state != nullptr) released_.push_back(state->key);
    return state != nullptr;
  }

  void add(const NewRequest& request) {
    State state = batch_.make_state(request);
    release(request.id);
    state->key = next_key_++;
    requests_[request.id] = std::move(state);
  }

  void continue_session(const NewRequest& request) {
    const RequestKey key = find(request.id)->key;
    State state = batch_.make_state(request);
    state->key = key;
    requests_[request.id] = std::move(state);
  }

  void set_tokens(const RequestUpdate& update) {
    requests_[update.id] = batch_.with_tokens(*find(update.id), update.token_ids);
  }

  // After all that gives the request another state.
  void set_blocks(const BlockUpdate& update) { blocks_.push_back({find(update.id), &update}); }

  std::vector<RequestKey> apply() {
    for (auto& [id, state] : requests_) {
      if (state == nullptr) {
        batch_.requests_.erase(id);
      } else {
        batch_.requests_[id] = std::move(state);
      }
    }
    for (const auto& [state, update] : blocks_) {
      if (update->replaces) state->block_ids.clear();
      state->block_ids.insert(state->block_ids.end(), update->block_ids.begin(),
                              update->block_ids.end());
    }
    batch_.next_key_ = next_key_;
    return std::move(released_);
  }

 private:
  State find_or_null(const std::string& id) const {
    const auto found = requests_.find(id);
    return found != requests_.end() ? found->second : batch_.find_or_null(id);
  }

  State find(const std::string& id) const {
    State state = find_or_null(id);
    if (state == nullptr) refuse_unknown(id);
    return state;
  }

  InputBatch& batch_;
  RequestKey next_key_;
  std::unordered_map<std::string, State> requests_;  // those that change; null: forgotten
  std::vector<std::pair<State, const BlockUpdate*>> blocks_;
  std::vector<RequestKey> released_;
};

InputBatch::State InputBatch::find_or_null(const std::string& id) const {
  const auto found = requests_.find(id);
  return found != requests_.end() ? found->second : nullptr;
}

InputBatch::State InputBatch::find(const std::string& id) const {
  State state = find_or_null(id);
  if (state == nullptr) refuse_unknown(id);
  return state;
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
  Changes changes(*this);
  for (const auto& id : input.finished) changes.forget(id);
  for (const auto& id : input.preempted) changes.release(id);
  for (const auto& request : input.new_requests) changes.add(request);
  for (const auto& request : input.sessions) changes.continue_session(request);
  for (const auto& update : input.updates) changes.set_tokens(update);
  for (const auto& update : input.blocks) changes.set_blocks(update);
  return changes.apply();
}

std::vector<CachedBlocks> InputBatch::cached_blocks(const std::vector<PrefixBlocks>& blocks) const {
  std::vector<CachedBlocks> result;
  result.reserve(blocks.size());
  for (const auto& [id, first_block, of_request] : blocks)
    result.push_back({find(id)->key, first_block, of_request});
  return result;
}

Batch InputBatch::pack(const StepInput& input) const {
  Batch batch{std::make_shared<PackedStep>(), {}};
  PackedStep& step = *batch.step;
  CacheStep& cache = step.cache;
  cache.query_starts.push_back(0);
  cache.block_copies = input.block_copies;
  for (size_t i = 0; i < input.scheduled.size(); ++i) {
    const auto& scheduled = input.scheduled[i];
    const State request = find(scheduled.id);
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
      step.takes_most_likely =
          step.takes_most_likely && request->sampling->params().takes_most_likely();
      batch.samples.push_back({i, request});
    }
  }
  return batch;
}

}  // namespace vllm_metal
