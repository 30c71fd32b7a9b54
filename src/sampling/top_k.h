// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace vllm_metal {

// The k-th largest of `values`, counting equal ones each, in expected time O(size + k log size);
// -inf where fewer than k are above -inf. No value is NaN; k is at least 1.
// `scratch` is overwritten; its memory serves the next call.
float kth_largest(std::span<const float> values, int k, std::vector<float>& scratch);

struct RankedValue {
  float value;
  int32_t index;
};

// The indexes of the largest of `values`, largest first, lower indexes first where they are equal.
// As many as `indexes` has room for, at most the number of values. No value is NaN.
void find_largest(std::span<const float> values, std::span<int32_t> indexes,
                  std::vector<RankedValue>& scratch);

}  // namespace vllm_metal
