// SPDX-License-Identifier: Apache-2.0
// What the matrix product kernels of each instruction set are told. cpu/matmul.cpp drives them.
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/simd/element_type.h"

namespace vllm_metal::cpu {

// Rows of a strip, see PackedMatrix.
constexpr int kStripRows = 16;

// A weight matrix [out_features, in_features]: dense, or in MLX's affine quantisation (see
// QuantizedMatrix), by rows or in strips. Strides are in elements of what they step over; rows are
// contiguous within.
struct WeightRows {
  int64_t out_features;
  int64_t in_features;
  const void* elements;  // dense elements, packed uint32 words, or strips
  int64_t stride;
  ElementType type;        // of the dense elements, or of scales and biases
  int bits = 0;            // 0: dense
  int64_t group_size = 0;  // what follows is for quantised weights only
  const void* scales = nullptr;
  int64_t scales_stride = 0;
  const void* biases = nullptr;
  int64_t biases_stride = 0;
  bool in_strips = false;  // quantised, with scales and biases among the elements; no strides
};

// Activations [num_tokens, in_features].
struct TokenRows {
  const void* elements;
  ElementType type;
  int64_t num_tokens;
  int64_t stride;
};

// The result [num_tokens, out_features], contiguous, and the vector that is added to its rows.
struct LinearOutput {
  void* elements;
  ElementType type;
  const void* bias;  // [out_features], or null
  ElementType bias_type;
};

// A block of the result: tokens [token_begin, token_end) by features [begin, end).
struct LinearBlock {
  int64_t token_begin;
  int64_t token_end;
  int64_t begin;
  int64_t end;
};

// There are two ways to a result. Each first lays out the activations as it likes to read them
// (`pack`, `input_floats` long), then computes blocks in any order and on any thread, with
// `scratch_floats` of memory for each block at work. An element of the result is summed in the
// same order whatever the blocks are. Input and scratch are aligned to 64 bytes.

// For few tokens: the weights are read once, and multiplied with all tokens on the way.
struct StreamingKernels {
  int64_t (*input_floats)(const WeightRows&, int64_t num_tokens);
  int64_t (*scratch_floats)(const WeightRows&, int64_t num_tokens, int64_t num_features);
  // Tokens [begin, end).
  void (*pack)(const WeightRows&, const TokenRows&, int64_t begin, int64_t end, float* input);
  void (*run)(const WeightRows&, const float* input, int64_t num_tokens, int64_t begin, int64_t end,
              const LinearOutput&, float* scratch);
  // With more tokens, blocks are faster.
  int64_t max_tokens;
};

// For many tokens: blocks of weights are converted to float32 once and used for all of them.
// Blocks begin at multiples of `tokens_per_panel` and `features_per_block`.
struct BlockedKernels {
  int64_t tokens_per_panel;
  int64_t features_per_block;
  int64_t (*input_floats)(const WeightRows&, int64_t num_tokens);
  int64_t (*scratch_floats)(int64_t num_tokens);
  // Panels [begin, end).
  void (*pack)(const WeightRows&, const TokenRows&, int64_t begin, int64_t end, float* input);
  void (*run)(const WeightRows&, const float* input, int64_t num_tokens, const LinearBlock&,
              const LinearOutput&, float* scratch);
};

struct LinearKernels {
  // The ones for such a weight, and activations of that type.
  const StreamingKernels& (*streaming)(const WeightRows&, ElementType);
  const BlockedKernels& (*blocked)(const WeightRows&, ElementType);
  // Row `row` of the matrix, to `out` [in_features] of `type`, by way of `scratch` [in_features].
  void (*read_row)(const WeightRows&, int64_t row, void* out, ElementType type, float* scratch);
};

VLLM_METAL_DECLARE_KERNELS(LinearKernels, linear_kernels)

}  // namespace vllm_metal::cpu
