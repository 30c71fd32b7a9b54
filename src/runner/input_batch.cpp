// SPDX-License-Identifier: Apache-2.0
#include "runner/input_batch.h"

#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

RequestState& InputBatch::find(const std::string& id) {
  auto found = requests_.find(id);
  if (found == requests_.end())
    throw std::invalid_argument(text("[runner] request '", id, "' is unknown."));
  return found->second;
}

void InputBatch::update(const StepInput& input, ContiguousKVCache& cache) {
  for (const auto& request : input.new_requests) {
    request.sampling.validate();
    if (request.token_ids.empty())
      throw std::invalid_argument(text("[runner] request '", request.id, "' has no tokens."));
  }
  auto forget = [&](const std::string& id) {
    auto found = requests_.find(id);
    if (found == requests_.end()) return;  // the scheduler may name requests that never ran
    cache.release(found->second.key);
    requests_.erase(found);
  };
  for (const auto& id : input.finished) forget(id);
  for (const auto& id : input.preempted)
    if (auto found = requests_.find(id); found != requests_.end()) cache.release(found->second.key);
  for (const auto& request : input.new_requests) {
    forget(request.id);
    const uint64_t seed =
        request.sampling.seed ? static_cast<uint64_t>(*request.sampling.seed) : random_();
    requests_.emplace(request.id, RequestState{next_key_++, request.token_ids,
                                               request.num_output_tokens, request.sampling, seed});
  }
  for (const auto& update : input.updates) {
    RequestState& request = find(update.id);
    const auto prompt_len =
        static_cast<int64_t>(request.token_ids.size()) - request.num_output_tokens;
    request.token_ids = update.token_ids;
    request.num_output_tokens = static_cast<int64_t>(update.token_ids.size()) - prompt_len;
  }
}

PackedStep InputBatch::pack(const StepInput& input) {
  PackedStep step;
  step.query_starts.push_back(0);
  for (size_t i = 0; i < input.scheduled.size(); ++i) {
    const auto& scheduled = input.scheduled[i];
    RequestState& request = find(scheduled.id);
    const auto known = static_cast<int32_t>(request.token_ids.size());
    const int32_t begin = scheduled.num_computed_tokens,
                  end = begin + scheduled.num_scheduled_tokens;
    if (begin < 0 || scheduled.num_scheduled_tokens < 1 || end > known)
      throw std::invalid_argument(text("[runner] request '", scheduled.id, "' has ", known,
                                       " tokens but tokens ", begin, " to ", end,
                                       " were scheduled."));
    for (int32_t position = begin; position < end; ++position) {
      step.token_ids.push_back(request.token_ids[static_cast<size_t>(position)]);
      step.positions.push_back(position);
    }
    step.requests.push_back(&request);
    step.query_starts.push_back(static_cast<int32_t>(step.token_ids.size()));
    step.context_lens.push_back(end);
    step.request_lens.push_back(known);
    if (end == known) {
      step.sample_rows.push_back(step.query_starts.back() - 1);
      step.samples.push_back({i, &request});
    }
  }
  return step;
}

}  // namespace vllm_metal
