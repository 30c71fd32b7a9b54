// SPDX-License-Identifier: Apache-2.0
#include "sampling/copy_logits.h"

#include <algorithm>
#include <limits>

#include "sampling/row_passes.h"

namespace vllm_metal {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
}  // namespace

void copy_logits(std::span<const float> logits, const int32_t* bitmask, std::span<float> copy) {
  if (bitmask != nullptr) {
    copy_masked(logits, bitmask, copy);
  } else {
    std::copy(logits.begin(), logits.end(), copy.begin());
  }
}

void copy_allowed_logits(std::span<const float> logits, const int32_t* bitmask,
                         std::span<const int32_t> token_ids, std::span<float> copy) {
  std::fill(copy.begin(), copy.end(), kMasked);
  for (int32_t token_id : token_ids) {
    const auto id = static_cast<size_t>(token_id);
    const bool allowed =
        bitmask == nullptr || (static_cast<uint32_t>(bitmask[id / 32]) >> (id % 32) & 1) != 0;
    if (allowed) copy[id] = logits[id];
  }
}

}  // namespace vllm_metal
