// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/row_passes.h"

namespace vllm_metal {

// softmax(logits / temperature) of one row, held as sums over blocks of it: a draw finds its block
// by the sums and computes the weights of that block again, so that nothing of the row's size is
// stored. A weight is exp((logit - max) / temperature), 1 for the largest logit.
class RowSoftmax {
 public:
  // Starts on a row [vocab_size] that stays alive while it is in use. `max` is its max_logit.
  void reset(std::span<const float> logits, float max);

  std::span<const float> logits() const { return logits_; }
  float max() const { return max_; }

  // Sum of the weights. Cheap when the last call of this row had the same temperature.
  double sum(float temperature);

  // The token at `uniform` in [0, 1) of the cumulative distribution in the order of ids.
  int draw(float temperature, double uniform);

 private:
  std::span<const float> logits_;
  float max_ = 0;
  float temperature_ = 0;  // of block_sums_; 0 before the first sum of a row
  double sum_ = 0;
  std::vector<double> block_sums_;  // [ceil(vocab_size / block)]
};

struct CumulativePosition {
  int index;
  double remainder;  // what is left of the target at that index
};

// The first index at which the running sum of weight(0), weight(1), … exceeds `target`; the last
// with a weight where rounding leaves the sum short of it. Never one without a weight.
template <typename Weight>
CumulativePosition find_cumulative(int size, Weight weight, double target) {
  CumulativePosition position{0, 0};
  for (int i = 0; i < size; ++i) {
    const double value = weight(i);
    if (!(value > 0)) continue;
    position = {i, target};
    if (target < value) break;
    target -= value;
  }
  return position;
}

}  // namespace vllm_metal
