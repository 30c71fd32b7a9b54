// SPDX-License-Identifier: Apache-2.0
// What the elementwise kernels of each instruction set are told. Strides are in elements; all
// rows are contiguous within.
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/simd/element_type.h"

namespace vllm_metal::cpu {

struct RmsNormRows {
  ElementType type;
  const void* x;  // [num_rows, width]
  int64_t x_stride;
  const void* residual;  // [num_rows, width], or null: nothing is added
  int64_t residual_stride;
  const void* weight;  // [width]
  void* sum;           // [num_rows, width], contiguous: x + residual
  void* normalized;    // [num_rows, width], contiguous
  int64_t width;
  float eps;
};

struct SiluAndMulRows {
  ElementType type;
  const void* gate_up;  // [num_rows, 2 * width]
  int64_t stride;
  void* out;  // [num_rows, width], contiguous
  int64_t width;
};

struct SplitRotaryTokens {
  ElementType type;
  const void* qkv;  // [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
  int64_t qkv_stride;
  const float* cos_sin;  // [num_tokens, rotary_dim]
  int64_t cos_sin_stride;
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int rotary_dim;
  void* queries;         // [num_tokens, num_heads, head_dim], contiguous
  void* keys;            // [num_tokens or rows of a cache, num_kv_heads, head_dim], contiguous
  void* values;          // likewise
  const int32_t* slots;  // [num_tokens] rows of keys and values that are written, or null
};

// Each computes rows (tokens) [begin, end). A row's result does not depend on the others.
struct ElementwiseKernels {
  void (*rms_norm)(const RmsNormRows&, int64_t begin, int64_t end);
  void (*silu_and_mul)(const SiluAndMulRows&, int64_t begin, int64_t end);
  void (*split_rotary)(const SplitRotaryTokens&, int64_t begin, int64_t end);
};

VLLM_METAL_DECLARE_KERNELS(ElementwiseKernels, elementwise_kernels)

}  // namespace vllm_metal::cpu
