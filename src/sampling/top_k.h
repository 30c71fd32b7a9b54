// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

namespace vllm_metal {

// The k-th largest of `values`, counting equal ones each, in expected time O(size + k log size);
// -inf where fewer than k are above -inf. No value is NaN; k is at least 1.
// `scratch` is overwritten; its memory serves the next call.
float kth_largest(std::span<const float> values, int k, std::vector<float>& scratch);

}  // namespace vllm_metal
