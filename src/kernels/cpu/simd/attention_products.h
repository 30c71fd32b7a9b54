// SPDX-License-Identifier: Apache-2.0
// The two products of attention, queries · keys and weights · values, for a few query rows at a
// time. Internal to attention.simd.cpp.
#pragma once

#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// Query rows and registers that an inner loop holds sums for.
constexpr int kMaxRows = 6;
constexpr int kColumns = 2;
constexpr int kStep = kColumns * kLanes;

// scores[row, column] = queries[row] · keys[:, column] for kRows rows and the columns below
// `count`, rounded up to a whole step.
template <int kRows>
void score_rows(const float* queries, const float* keys, int head_dim, int count, float* scores) {
  for (int column = 0; column < count; column += kStep) {
    Floats sums[kRows][kColumns] = {};
    for (int d = 0; d < head_dim; ++d) {
      const Floats first = load(keys + d * kKeyBlock + column);
      const Floats second = load(keys + d * kKeyBlock + column + kLanes);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row) {
        const float query = queries[row * head_dim + d];
        sums[row][0] = fma(query, first, sums[row][0]);
        sums[row][1] = fma(query, second, sums[row][1]);
      }
    }
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      store(scores + row * kKeyBlock + column, sums[row][0]);
      store(scores + row * kKeyBlock + column + kLanes, sums[row][1]);
    }
  }
}

// outputs[row] += sum over the first `count` keys of weights[row, key] * values[key], for kRows
// rows and kWidth registers of each.
template <int kRows, int kWidth>
VLLM_METAL_INLINE void add_values(const float* weights, const float* values, int64_t stride,
                                  int count, float* outputs) {
  Floats sums[kRows][kWidth];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
    for (int i = 0; i < kWidth; ++i) sums[row][i] = load(outputs + row * stride + i * kLanes);
  }
  for (int key = 0; key < count; ++key) {
    Floats value[kWidth];
#pragma GCC unroll 2
    for (int i = 0; i < kWidth; ++i) value[i] = load(values + key * stride + i * kLanes);
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      const float weight = weights[row * kKeyBlock + key];
#pragma GCC unroll 2
      for (int i = 0; i < kWidth; ++i) sums[row][i] = fma(weight, value[i], sums[row][i]);
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
    for (int i = 0; i < kWidth; ++i) store(outputs + row * stride + i * kLanes, sums[row][i]);
  }
}

template <int kRows>
void weigh_values(const float* weights, const float* values, int64_t stride, int count,
                  float* outputs) {
  int64_t d = 0;
  for (; d + kStep <= stride; d += kStep)
    add_values<kRows, kColumns>(weights, values + d, stride, count, outputs + d);
  if (d < stride) add_values<kRows, 1>(weights, values + d, stride, count, outputs + d);
}

using ScoreRows = void (*)(const float*, const float*, int, int, float*);
using WeighValues = void (*)(const float*, const float*, int64_t, int, float*);
constexpr ScoreRows kScoreRows[kMaxRows] = {score_rows<1>, score_rows<2>, score_rows<3>,
                                            score_rows<4>, score_rows<5>, score_rows<6>};
constexpr WeighValues kWeighValues[kMaxRows] = {weigh_values<1>, weigh_values<2>, weigh_values<3>,
                                                weigh_values<4>, weigh_values<5>, weigh_values<6>};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
