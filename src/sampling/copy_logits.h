// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace vllm_metal {

// Copies a row; -inf where the bitmask has no bit, if there is one.
//   logits, copy  [vocab_size]
//   bitmask  [ceil(vocab_size / 32)], lowest bits first, or null
void copy_logits(std::span<const float> logits, const int32_t* bitmask, std::span<float> copy);

// Copies the logits of some tokens, with -inf for all others.
//   token_ids  in [0, vocab_size)
void copy_allowed_logits(std::span<const float> logits, const int32_t* bitmask,
                         std::span<const int32_t> token_ids, std::span<float> copy);

}  // namespace vllm_metal
