// SPDX-License-Identifier: Apache-2.0
#include "sampling/softmax.h"

#include <algorithm>
#include <array>

namespace vllm_metal {

void RowSoftmax::reset(std::span<const float> logits, float max) {
  logits_ = logits;
  max_ = max;
  temperature_ = 0;
}

double RowSoftmax::sum(float temperature) {
  if (temperature == temperature_) return sum_;
  temperature_ = temperature;
  block_sums_.resize((logits_.size() + kRowBlock - 1) / kRowBlock);
  sum_weights(logits_, max_, temperature, block_sums_);
  sum_ = 0;
  for (double block_sum : block_sums_) sum_ += block_sum;
  return sum_;
}

int RowSoftmax::draw(float temperature, double uniform) {
  const double target = uniform * sum(temperature);
  const auto block = find_cumulative(
      static_cast<int>(block_sums_.size()), [&](int i) { return block_sums_[i]; }, target);
  const size_t begin = static_cast<size_t>(block.index) * kRowBlock;
  const auto logits = logits_.subspan(begin, std::min(kRowBlock, logits_.size() - begin));
  std::array<float, kRowBlock> weights;
  compute_weights(logits, max_, temperature, weights.data());
  const auto token = find_cumulative(
      static_cast<int>(logits.size()), [&](int i) { return weights[i]; }, block.remainder);
  return static_cast<int>(begin) + token.index;
}

}  // namespace vllm_metal
