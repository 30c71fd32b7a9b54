// SPDX-License-Identifier: Apache-2.0
// From scores to weights: the running softmax of one row. Internal to attention.simd.cpp.
#pragma once

#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// Below every score; finite, so that differences of it are no NaN. The weight of a key with this
// score is 0 beside any other.
constexpr float kNoScore = -1e30f;

VLLM_METAL_INLINE void scale_row(float* outputs, int64_t width, float factor) {
  for (int64_t d = 0; d < width; d += kLanes) store(outputs + d, load(outputs + d) * factor);
}

VLLM_METAL_INLINE float exp_one(float x) { return exp(broadcast(x))[0]; }

// Within a few units in the last place: near 0 by the Taylor series, whose next term is below
// 2^-24 of the value, elsewhere by e^2x.
VLLM_METAL_INLINE Floats tanh(Floats x) {
  const Floats square = x * x;
  Floats p = square * (62.0f / 2835) - (17.0f / 315);
  p = p * square + (2.0f / 15);
  p = p * square - (1.0f / 3);
  const Floats near = x * square * p + x;
  const Floats far = 1.0f - 2.0f / (exp(x + x) + 1.0f);
  return square < 0.09f ? near : far;
}

// score -> cap * tanh(score / cap) for the first `count` scores, in whole registers.
inline void cap_scores(float* scores, int count, float cap) {
  for (int key = 0; key < count; key += kLanes)
    store(scores + key, tanh(load(scores + key) / cap) * cap);
}

// Lanes [0, count) of a register, of those that lie before `count`.
VLLM_METAL_INLINE Ints lanes_before(int count) {
  Ints lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes < count;
}

// The highest of the scores of the first `count` keys of one row and of `row_max`.
VLLM_METAL_INLINE float highest_score(const float* scores, int count, float row_max) {
  Floats highest = broadcast(row_max);
  for (int key = 0; key < count; key += kLanes)
    highest = max(lanes_before(count - key) ? load(scores + key) : highest, highest);
  return horizontal_max(highest);
}

// Turns the scores of the first `count` keys of one row into weights exp(score - new_max) and
// brings the row's state to that maximum.
VLLM_METAL_INLINE void update_softmax(float* scores, int count, float new_max, float* row_max,
                                      float* lane_sums, float* outputs, int64_t width) {
  Floats sums = load(lane_sums);
  if (new_max != *row_max) {
    const float factor = exp_one(*row_max - new_max);
    scale_row(outputs, width, factor);
    sums *= factor;
    *row_max = new_max;
  }
  for (int key = 0; key < count; key += kLanes) {
    const Floats weights = lanes_before(count - key) ? exp(load(scores + key) - new_max) : Floats{};
    store(scores + key, weights);
    sums += weights;
  }
  store(lane_sums, sums);
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
