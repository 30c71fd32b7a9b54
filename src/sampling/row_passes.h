// SPDX-License-Identifier: Apache-2.0
// Loops over rows of the vocabulary's size: plain code that compilers vectorise, in one file so
// that it can be compiled for several instruction sets.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vllm_metal {

// Rows are passed over in blocks of so many.
inline constexpr size_t kRowBlock = 256;

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

// The largest logits of kNumStrides parts of the row, -inf for those without any; no logit is NaN.
inline constexpr size_t kNumStrides = 64;
std::array<float, kNumStrides> max_of_strides(std::span<const float> logits);

// A largest logit and where to start looking for it: not after its first index, and near.
struct MaxLogit {
  float value;  // NaN if any logit is NaN
  size_t begin;
};
MaxLogit locate_max_logit(std::span<const float> logits);

// The first index of a logit that is there.
int32_t find_logit(std::span<const float> logits, float logit);

// The number of logits of at least `threshold`.
int32_t count_at_least(std::span<const float> logits, float threshold);

// The first index at or after `begin` of a block of kRowBlock, counted from `begin`, that holds a
// logit above (at least) the threshold; the number of logits where none does.
size_t next_block_above(std::span<const float> logits, size_t begin, float threshold);
size_t next_block_at_least(std::span<const float> logits, size_t begin, float threshold);

// Weights exp((logit - max) / temperature) of a block, at most kRowBlock.
void compute_weights(std::span<const float> logits, float max, float temperature, float* weights);

// Sums of the weights of each block of kRowBlock: block_sums [ceil(logits.size() / kRowBlock)].
void sum_weights(std::span<const float> logits, float max, float temperature,
                 std::span<double> block_sums);

// Copies a row; -inf where the bitmask has no bit.
//   logits, copy  [vocab_size]
//   bitmask  [ceil(vocab_size / 32)], lowest bits first
void copy_masked(std::span<const float> logits, const int32_t* bitmask, std::span<float> copy);

// Divides the logits above `border`, and those equal to it up to the id `last_id`, by the
// temperature; -inf for the others.
void scale_kept(std::span<const float> logits, float border, int32_t last_id, float temperature,
                std::span<float> scaled);

}  // namespace vllm_metal
