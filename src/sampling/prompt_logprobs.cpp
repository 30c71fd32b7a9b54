// SPDX-License-Identifier: Apache-2.0
#include "sampling/prompt_logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "common/text.h"

namespace vllm_metal {
namespace {

void check_ids(std::span<const int32_t> token_ids, const char* name, int lowest, int vocab_size) {
  for (int32_t token_id : token_ids) {
    if (token_id >= lowest && token_id < vocab_size) continue;
    throw std::invalid_argument(text("[prompt_logprobs] ", name, " must be in [", lowest, ", ",
                                     vocab_size, ") but got ", token_id, "."));
  }
}

void check_rows(const SamplingParams& params, size_t prompt_len) {
  const size_t num_ids = params.prompt_logprob_token_ids.size();
  if (num_ids == 0) return;
  const size_t end = static_cast<size_t>(params.prompt_logprob_start) +
                     num_ids / static_cast<size_t>(params.prompt_logprob_ids_per_row);
  if (end < prompt_len) return;
  throw std::invalid_argument(
      text("[prompt_logprobs] rows of prompt_logprob_token_ids must end before ", prompt_len,
           ", the number of prompt tokens, but end at ", end, "."));
}

}  // namespace

PromptLogprobs::PromptLogprobs(std::shared_ptr<const SamplingParams> params,
                               const SamplerConfig& config, std::vector<int32_t> prompt_token_ids)
    : params_(std::move(params)),
      vocab_size_(config.vocab_size),
      mode_(config.logprobs_mode),
      prompt_token_ids_(std::move(prompt_token_ids)) {
  if (params_ == nullptr) throw std::invalid_argument("[prompt_logprobs] params must not be null.");
  params_->validate();
  if (prompt_token_ids_.empty())
    throw std::invalid_argument("[prompt_logprobs] prompt_token_ids must not be empty.");
  check_ids(prompt_token_ids_, "prompt_token_ids", 0, vocab_size_);
  check_ids(params_->prompt_logprob_token_ids, "prompt_logprob_token_ids", -1, vocab_size_);
  check_rows(*params_, prompt_token_ids_.size());
  if (const auto& count = params_->num_prompt_logprobs) {
    logprobs_ =
        make_logprobs(prompt_token_ids_.size() - 1, 1 + resolve_num_logprobs(*count, vocab_size_));
  }
  token_id_scores_.assign(params_->prompt_logprob_token_ids.size(),
                          -std::numeric_limits<float>::infinity());
}

void PromptLogprobs::add(int64_t first_position, std::span<const float> logits) {
  const auto vocab_size = static_cast<size_t>(vocab_size_);
  if (first_position < 0 || logits.size() % vocab_size != 0) {
    throw std::invalid_argument(text("[prompt_logprobs] rows from position ", first_position,
                                     " on need a multiple of ", vocab_size, " logits but got ",
                                     logits.size(), "."));
  }
  const size_t num_rows = logits.size() / vocab_size;
  for (size_t row = 0; row < num_rows; ++row) {
    const size_t position = static_cast<size_t>(first_position) + row;
    if (position + 1 >= prompt_token_ids_.size()) return;
    add_row(position, logits.subspan(row * vocab_size, vocab_size));
  }
}

void PromptLogprobs::add_row(size_t position, std::span<const float> logits) {
  thread_local RowSoftmax softmax;
  thread_local RowScorer scorer;
  const float max = max_logit(logits);
  if (std::isnan(max)) return;
  softmax.reset(logits, max);
  if (logprobs_.width > 0) {
    const ScoredTokens tokens{.drawn_token = prompt_token_ids_[position + 1],
                              .num_most_likely = logprobs_.width - 1};
    scorer.score(softmax, mode_, tokens, position, logprobs_);
  }
  score_token_ids(position, softmax);
}

void PromptLogprobs::score_token_ids(size_t position, RowSoftmax& softmax) {
  const auto start = static_cast<size_t>(params_->prompt_logprob_start);
  const auto width = static_cast<size_t>(params_->prompt_logprob_ids_per_row);
  if (position < start || (position - start) * width >= token_id_scores_.size()) return;
  const size_t begin = (position - start) * width;
  const auto ids = std::span(params_->prompt_logprob_token_ids).subspan(begin, width);
  for (size_t i = 0; i < width; ++i) {
    if (ids[i] >= 0)
      gather_scores(softmax, mode_, ids.subspan(i, 1),
                    std::span(token_id_scores_).subspan(begin + i, 1));
  }
}

}  // namespace vllm_metal
