// SPDX-License-Identifier: Apache-2.0
#include "sampling/top_k.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace vllm_metal {
namespace {

// Drops all but the k largest and returns the smallest of them.
float shrink_to_largest(std::vector<float>& values, size_t k) {
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
  values.resize(k);
  return values.back();
}

bool any_above(std::span<const float> values, float threshold) {
  int count = 0;
  for (float value : values) count += value > threshold;
  return count > 0;
}

}  // namespace

float kth_largest(std::span<const float> values, int k, std::vector<float>& scratch) {
  // Values above the k-th largest so far are collected and cut back to k whenever there are twice
  // as many. The threshold rises fast, so that most blocks hold nothing above it.
  constexpr size_t kBlockSize = 64;
  const size_t wanted = static_cast<size_t>(k);
  float threshold = -std::numeric_limits<float>::infinity();
  scratch.clear();
  for (size_t begin = 0; begin < values.size(); begin += kBlockSize) {
    const auto block = values.subspan(begin, std::min(kBlockSize, values.size() - begin));
    if (!any_above(block, threshold)) continue;
    for (float value : block) {
      if (value > threshold) scratch.push_back(value);
    }
    if (scratch.size() >= 2 * wanted) threshold = shrink_to_largest(scratch, wanted);
  }
  return scratch.size() < wanted ? threshold : shrink_to_largest(scratch, wanted);
}

}  // namespace vllm_metal
