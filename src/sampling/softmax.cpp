// SPDX-License-Identifier: Apache-2.0
#include "sampling/softmax.h"

#include <algorithm>
#include <array>
#include <limits>

namespace vllm_metal {
namespace {

// Floating-point sums and maxima run in lanes: compilers may not reorder them on their own.
constexpr int kLanes = 32;  // more than compilers unroll, which would hide the loop
constexpr int kBlockSize = 256;
using Block = std::array<float, kBlockSize>;

// Fills the first of `weights` with those of `logits`, at most a block.
void compute_weights(std::span<const float> logits, float max, float temperature, Block& weights) {
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = exp_of_nonpositive(softmax_exponent(logits[i], max, temperature));
  }
}

double sum_block(const Block& weights) {
  std::array<double, kLanes> lanes{};
  for (int i = 0; i < kBlockSize; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += weights[i + lane];
  }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

std::span<const float> block_of(std::span<const float> logits, size_t block) {
  const size_t begin = block * kBlockSize;
  return logits.subspan(begin, std::min<size_t>(kBlockSize, logits.size() - begin));
}

}  // namespace

float max_logit(std::span<const float> logits) {
  std::array<float, kLanes> lanes;
  lanes.fill(-std::numeric_limits<float>::infinity());
  std::array<int, kLanes> num_nan{};
  const size_t num_whole = logits.size() - logits.size() % kLanes;
  for (size_t i = 0; i < num_whole; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float logit = logits[i + lane];
      lanes[lane] = logit > lanes[lane] ? logit : lanes[lane];
      num_nan[lane] += logit != logit;
    }
  }
  for (size_t i = num_whole; i < logits.size(); ++i) {
    lanes[0] = std::max(lanes[0], logits[i]);
    num_nan[0] += logits[i] != logits[i];
  }
  const bool any_nan = std::any_of(num_nan.begin(), num_nan.end(), [](int n) { return n > 0; });
  return any_nan ? std::numeric_limits<float>::quiet_NaN()
                 : *std::max_element(lanes.begin(), lanes.end());
}

int32_t find_logit(std::span<const float> logits, float logit) {
  // Counting is vectorised where a search is not.
  size_t begin = 0;
  for (; begin + kBlockSize < logits.size(); begin += kBlockSize) {
    int count = 0;
    for (float other : logits.subspan(begin, kBlockSize)) count += other == logit;
    if (count > 0) break;
  }
  const auto rest = logits.subspan(begin);
  return static_cast<int32_t>(begin) +
         static_cast<int32_t>(std::find(rest.begin(), rest.end(), logit) - rest.begin());
}

void RowSoftmax::reset(std::span<const float> logits, float max) {
  logits_ = logits;
  max_ = max;
  temperature_ = 0;
}

double RowSoftmax::sum(float temperature) {
  if (temperature == temperature_) return sum_;
  temperature_ = temperature;
  sum_ = 0;
  block_sums_.resize((logits_.size() + kBlockSize - 1) / kBlockSize);
  for (size_t block = 0; block < block_sums_.size(); ++block) {
    Block weights{};
    compute_weights(block_of(logits_, block), max_, temperature, weights);
    block_sums_[block] = sum_block(weights);
    sum_ += block_sums_[block];
  }
  return sum_;
}

int RowSoftmax::draw(float temperature, double uniform) {
  const double target = uniform * sum(temperature);
  const auto block = find_cumulative(
      static_cast<int>(block_sums_.size()), [&](int i) { return block_sums_[i]; }, target);
  const std::span<const float> logits = block_of(logits_, block.index);
  Block weights;
  compute_weights(logits, max_, temperature, weights);
  const auto token = find_cumulative(
      static_cast<int>(logits.size()), [&](int i) { return weights[i]; }, block.remainder);
  return block.index * kBlockSize + token.index;
}

}  // namespace vllm_metal
