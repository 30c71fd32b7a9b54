// SPDX-License-Identifier: Apache-2.0
#include "sampling/copy_logits.h"

#include <algorithm>
#include <array>
#include <limits>

namespace vllm_metal {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
constexpr size_t kWordSize = 32;

constexpr std::array<uint32_t, kWordSize> make_bits() {
  std::array<uint32_t, kWordSize> bits{};
  for (size_t i = 0; i < kWordSize; ++i) bits[i] = uint32_t{1} << i;
  return bits;
}

// A table instead of shifts: not every vector unit shifts lanes by different counts.
constexpr std::array<uint32_t, kWordSize> kBits = make_bits();

}  // namespace

void copy_logits(std::span<const float> logits, const int32_t* bitmask, std::span<float> copy) {
  if (bitmask == nullptr) {
    std::copy(logits.begin(), logits.end(), copy.begin());
    return;
  }
  const size_t num_whole = logits.size() / kWordSize;
  for (size_t word = 0; word < num_whole; ++word) {
    const float* from = logits.data() + word * kWordSize;
    float* to = copy.data() + word * kWordSize;
    const auto allowed = static_cast<uint32_t>(bitmask[word]);
    if (allowed == 0) {  // most of the vocabulary under most grammars
      std::fill_n(to, kWordSize, kMasked);
      continue;
    }
    for (size_t i = 0; i < kWordSize; ++i) to[i] = (allowed & kBits[i]) != 0 ? from[i] : kMasked;
  }
  for (size_t i = num_whole * kWordSize; i < logits.size(); ++i)
    copy[i] = (static_cast<uint32_t>(bitmask[num_whole]) & kBits[i % kWordSize]) != 0 ? logits[i]
                                                                                      : kMasked;
}

void copy_allowed_logits(std::span<const float> logits, const int32_t* bitmask,
                         std::span<const int32_t> token_ids, std::span<float> copy) {
  std::fill(copy.begin(), copy.end(), kMasked);
  for (int32_t token_id : token_ids) {
    const auto id = static_cast<size_t>(token_id);
    const bool allowed = bitmask == nullptr || (static_cast<uint32_t>(bitmask[id / kWordSize]) &
                                                kBits[id % kWordSize]) != 0;
    if (allowed) copy[id] = logits[id];
  }
}

}  // namespace vllm_metal
