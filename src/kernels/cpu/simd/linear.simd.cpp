// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/simd/linear.h"

#include "kernels/cpu/simd/linear_parts.h"
#include "kernels/cpu/simd/strips.h"
#include "kernels/cpu/simd/weight_rows.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

namespace {

const StreamingKernels& streaming(const WeightRows& weight, ElementType activations) {
  return weight.in_strips ? strips_kernels(activations) : rows_kernels;
}

const BlockedKernels& blocked(const WeightRows& weight, ElementType activations) {
  return weight.in_strips ? strip_blocks_kernels(activations)
                          : row_blocks_kernels(weight, activations);
}

void read_row(const WeightRows& weight, int64_t row, void* out, ElementType type, float* scratch) {
  if (weight.in_strips) {
    read_strip_row(weight, row, scratch);
  } else {
    read_columns(weight, row, 0, weight.in_features, scratch);
  }
  with_elements(out, type, [&]<typename Element>(const Element*) {
    from_float32(scratch, weight.in_features, (Element*)out);
  });
}

}  // namespace

const LinearKernels linear_kernels = {streaming, blocked, read_row};

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
