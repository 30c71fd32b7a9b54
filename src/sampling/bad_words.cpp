// SPDX-License-Identifier: Apache-2.0
#include "sampling/bad_words.h"

#include <algorithm>
#include <limits>

namespace vllm_metal {
namespace {

size_t longest(std::span<const std::vector<int32_t>> words) {
  size_t length = 0;
  for (const auto& word : words) length = std::max(length, word.size());
  return length;
}

}  // namespace

BadWords::BadWords(std::span<const std::vector<int32_t>> words,
                   std::span<const int32_t> output_token_ids)
    : words_(words), output_(longest(words)) {
  for (int32_t token_id : output_token_ids) append(token_id);
}

bool BadWords::are_due() const {
  return std::any_of(words_.begin(), words_.end(),
                     [&](std::span<const int32_t> word) { return is_begun(word); });
}

void BadWords::apply(std::span<float> logits) const {
  for (std::span<const int32_t> word : words_) {
    const auto last = static_cast<size_t>(word.back());
    if (last < logits.size() && is_begun(word))
      logits[last] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace vllm_metal
