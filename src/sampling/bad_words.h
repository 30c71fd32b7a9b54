// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/token_tail.h"

namespace vllm_metal {

// Sequences of tokens that the output of one request never completes.
class BadWords {
 public:
  // words  none of them empty, no id negative; must outlive this object
  BadWords(std::span<const std::vector<int32_t>> words, std::span<const int32_t> output_token_ids);

  void append(int32_t token_id) { output_.append(token_id); }

  // Whether the next token could complete one.
  bool are_due() const;

  // Masks the last token of each word whose other tokens the output ends with.
  //   logits  [vocab_size]
  void apply(std::span<float> logits) const;

 private:
  // Whether the output ends with all of a word but its last token.
  bool is_begun(std::span<const int32_t> word) const {
    return output_.ends_with(word.first(word.size() - 1));
  }

  std::span<const std::vector<int32_t>> words_;
  TokenTail output_;
};

}  // namespace vllm_metal
