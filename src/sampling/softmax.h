// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace vllm_metal {

// Below this exponent a weight is 0; e^-87 is close to the smallest normal float.
inline constexpr float kMinExponent = -87.0f;

// e^x for x <= 0 to within 2 units in the last place. Plain arithmetic without a call or a branch,
// so that compilers vectorise loops over it.
inline float exp_of_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts: multiples of the first are exact.
  constexpr float kLn2High = 0.693145752f;
  constexpr float kLn2Low = 1.42860682e-6f;
  // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
  constexpr float kRounder = 12582912.0f;
  const float clamped = x < kMinExponent ? kMinExponent : x;
  const float rounded = clamped * kLog2E + kRounder;
  const float n = rounded - kRounder;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // Taylor series of e^r; the first term left out is below 6e-9.
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(rounded) - std::bit_cast<uint32_t>(kRounder);
  const float power = std::bit_cast<float>((exponent + 127u) << 23);  // 2^n
  return x < kMinExponent ? 0.0f : series * power;
}

// (logit - max) / temperature. Equal logits are compared first so that an infinite maximum gives
// 0 for itself and -inf for the rest: the limit of a logit that grows without bound.
inline float softmax_exponent(float logit, float max, float temperature) {
  return (logit == max ? 0.0f : logit - max) / temperature;
}

// The largest logit; NaN if any logit is NaN.
float max_logit(std::span<const float> logits);

// The first index of a logit that is there.
int32_t find_logit(std::span<const float> logits, float logit);

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
