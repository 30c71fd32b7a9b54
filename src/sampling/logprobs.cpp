// SPDX-License-Identifier: Apache-2.0
#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vllm_metal {
namespace {

bool is_logits(LogprobsMode mode) {
  return mode == LogprobsMode::kRawLogits || mode == LogprobsMode::kProcessedLogits;
}

// Tokens as likely as the drawn one or likelier. They are all among the most likely ones where the
// last of those is less likely.
int32_t rank(std::span<const float> logits, const ScoredTokens& tokens,
             std::span<const int32_t> listed) {
  const float drawn = logits[tokens.drawn_token];
  if (!tokens.token_ids.empty() || listed.empty() || !(logits[listed.back()] < drawn))
    return count_at_least(logits, drawn);
  return static_cast<int32_t>(
      std::count_if(listed.begin(), listed.end(), [&](int32_t id) { return logits[id] >= drawn; }));
}

}  // namespace

Logprobs make_logprobs(size_t num_rows, int width) {
  if (width == 0) return {};
  const size_t size = num_rows * static_cast<size_t>(width);
  return {.width = width,
          .token_ids = std::vector<int32_t>(size, 0),
          .values = std::vector<float>(size, -std::numeric_limits<float>::infinity()),
          .ranks = std::vector<int32_t>(num_rows, 0)};
}

int resolve_num_logprobs(int num_logprobs, int vocab_size) {
  return num_logprobs == -1 ? vocab_size : std::min(num_logprobs, vocab_size);
}

void gather_scores(RowSoftmax& softmax, LogprobsMode mode, std::span<const int32_t> token_ids,
                   std::span<float> scores) {
  const std::span<const float> logits = softmax.logits();
  if (is_logits(mode)) {
    for (size_t i = 0; i < token_ids.size(); ++i) scores[i] = logits[token_ids[i]];
    return;
  }
  const double log_sum = std::log(softmax.sum(/*temperature=*/1.0f));
  const float max = softmax.max();
  for (size_t i = 0; i < token_ids.size(); ++i) {
    const float logit = logits[token_ids[i]];
    const double exponent = logit == max ? 0.0 : static_cast<double>(logit) - max;
    scores[i] = static_cast<float>(exponent - log_sum);
  }
}

void RowScorer::score(RowSoftmax& softmax, LogprobsMode mode, const ScoredTokens& tokens,
                      size_t row, Logprobs& logprobs) {
  const size_t num_others = tokens.token_ids.empty() ? static_cast<size_t>(tokens.num_most_likely)
                                                     : tokens.token_ids.size();
  const size_t begin = row * static_cast<size_t>(logprobs.width);
  const std::span ids = std::span(logprobs.token_ids).subspan(begin, 1 + num_others);
  ids[0] = tokens.drawn_token;
  if (tokens.token_ids.empty()) {
    find_largest(softmax.logits(), ids.subspan(1), largest_);
  } else {
    std::copy(tokens.token_ids.begin(), tokens.token_ids.end(), ids.begin() + 1);
  }
  gather_scores(softmax, mode, ids, std::span(logprobs.values).subspan(begin, ids.size()));
  logprobs.ranks[row] = rank(softmax.logits(), tokens, ids.subspan(1));
}

}  // namespace vllm_metal
