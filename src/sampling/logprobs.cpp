// SPDX-License-Identifier: Apache-2.0
#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "sampling/top_k.h"

namespace vllm_metal {
namespace {

// The ids of the `count` largest logits, largest first, lower ids first where they are equal.
void find_most_likely(std::span<const float> logits, std::span<int32_t> token_ids) {
  if (token_ids.empty()) return;
  std::vector<float> largest;
  const float threshold = kth_largest(logits, static_cast<int>(token_ids.size()), largest);
  // All above the threshold belong; those equal to it fill the rest in the order of ids.
  size_t num_above = 0;
  for (float logit : logits) num_above += logit > threshold;
  size_t above = 0;
  size_t equal = num_above;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > threshold) {
      token_ids[above++] = static_cast<int32_t>(i);
    } else if (logits[i] == threshold && equal < token_ids.size()) {
      token_ids[equal++] = static_cast<int32_t>(i);
    }
  }
  std::sort(token_ids.begin(), token_ids.begin() + num_above, [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
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

void gather_logprobs(RowSoftmax& softmax, int32_t drawn_token, int num_logprobs, size_t row,
                     Logprobs& logprobs) {
  const std::span<const float> logits = softmax.logits();
  const size_t begin = row * static_cast<size_t>(logprobs.width);
  const std::span token_ids =
      std::span(logprobs.token_ids).subspan(begin, static_cast<size_t>(num_logprobs) + 1);
  token_ids[0] = drawn_token;
  find_most_likely(logits, token_ids.subspan(1));

  const double log_sum = std::log(softmax.sum(/*temperature=*/1.0f));
  const float max = softmax.max();
  for (size_t i = 0; i < token_ids.size(); ++i) {
    const float logit = logits[token_ids[i]];
    const double exponent = logit == max ? 0.0 : static_cast<double>(logit) - max;
    logprobs.values[begin + i] = static_cast<float>(exponent - log_sum);
  }
  int32_t rank = 0;
  for (float logit : logits) rank += logit >= logits[drawn_token];
  logprobs.ranks[row] = rank;
}

}  // namespace vllm_metal
