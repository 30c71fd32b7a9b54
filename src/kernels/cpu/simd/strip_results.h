// SPDX-License-Identifier: Apache-2.0
// From the sums of products with strips (strips.h) to rows of the result.
#pragma once

#include "kernels/cpu/simd/linear.h"
#include "kernels/cpu/simd/vector.h"
#include "kernels/cpu/simd/weight_rows.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// The output's bias of features [begin, end) as float32, zeros where it has none.
inline void read_bias(const LinearOutput& output, int64_t begin, int64_t end, float* bias) {
  if (output.bias == nullptr) {
    __builtin_memset(bias, 0, (end - begin) * sizeof(float));
  } else {
    with_elements(output.bias, output.bias_type,
                  [&](const auto* elements) { to_float32(elements + begin, end - begin, bias); });
  }
}

// Writes the first `num_rows` of each token's sums plus the bias. Strides are in elements.
template <typename Element>
void write_tile(const float* sums, int64_t sums_stride, const float* bias, int64_t num_tokens,
                int64_t num_rows, Element* out, int64_t out_stride) {
  for (int64_t token = 0; token < num_tokens; ++token, sums += sums_stride, out += out_stride) {
    int64_t row = 0;
    for (; row + kLanes <= num_rows; row += kLanes)
      store(out + row, load(sums + row) + load(bias + row));
    if (row < num_rows) store_first(out + row, load(sums + row) + load(bias + row), num_rows - row);
  }
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
