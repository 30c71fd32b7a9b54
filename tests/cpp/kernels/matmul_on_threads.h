// SPDX-License-Identifier: Apache-2.0
// Products by the CPU's kernels themselves, on one thread or on all, to compare bit for bit.
#pragma once

#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/linear.h"

namespace vllm_metal::testing_support {

// The rows of a matrix that stays alive; its arrays are row contiguous.
inline cpu::WeightRows rows_of(mx::array dense) {
  mx::eval(dense);
  return {.out_features = dense.shape(0),
          .in_features = dense.shape(1),
          .elements = dense.data<void>(),
          .stride = dense.shape(1),
          .type = cpu::element_type_of(dense.dtype())};
}

inline cpu::WeightRows rows_of(QuantizedMatrix matrix) {
  mx::eval(matrix.weight, matrix.scales, matrix.biases);
  return {.out_features = matrix.out_features(),
          .in_features = matrix.in_features(),
          .elements = matrix.weight.data<void>(),
          .stride = matrix.weight.shape(1),
          .type = cpu::element_type_of(matrix.scales.dtype()),
          .bits = matrix.bits,
          .group_size = matrix.group_size,
          .scales = matrix.scales.data<void>(),
          .scales_stride = matrix.scales.shape(1),
          .biases = matrix.biases.data<void>(),
          .biases_stride = matrix.biases.shape(1)};
}

// The first `num_tokens` rows of `x` by the weight.
inline std::vector<float> product(const cpu::WeightRows& weight, mx::array x, int num_tokens,
                                  bool on_one_thread) {
  mx::eval(x);
  std::vector<float> y(static_cast<size_t>(num_tokens) * weight.out_features);
  const cpu::Matmul matmul(weight,
                           {.elements = x.data<void>(),
                            .type = cpu::element_type_of(x.dtype()),
                            .num_tokens = num_tokens,
                            .stride = x.shape(1)},
                           {.elements = y.data(),
                            .type = cpu::ElementType::kFloat32,
                            .bias = nullptr,
                            .bias_type = cpu::ElementType::kFloat32});
  std::vector<float> workspace(matmul.workspace_floats());
  if (!on_one_thread) {
    matmul.run(workspace.data());
    return y;
  }
  cpu::parallel_for(2, 1, [&](int64_t begin, int64_t) {  // inside a body all calls are inline
    if (begin == 0) matmul.run(workspace.data());
  });
  return y;
}

}  // namespace vllm_metal::testing_support
