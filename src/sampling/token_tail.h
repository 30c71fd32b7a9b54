// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vllm_metal {

// The last tokens of a growing sequence, for questions about how it ends.
class TokenTail {
 public:
  // length  of the longest ending that is asked for
  explicit TokenTail(size_t length) : length_(length) {}

  void append(int32_t token_id) {
    // Cut back in one go now and then: a token costs constant time on average.
    if (tokens_.size() >= 2 * length_ + 16)
      tokens_.erase(tokens_.begin(), tokens_.end() - static_cast<std::ptrdiff_t>(length_));
    tokens_.push_back(token_id);
  }

  bool ends_with(std::span<const int32_t> ending) const {
    return ending.size() <= tokens_.size() &&
           std::equal(ending.rbegin(), ending.rend(), tokens_.rbegin());
  }

 private:
  size_t length_;
  std::vector<int32_t> tokens_;
};

}  // namespace vllm_metal
