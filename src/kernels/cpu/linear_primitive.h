// SPDX-License-Identifier: Apache-2.0
// What the graph nodes of all matrix products share.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/workspace.h"

namespace vllm_metal::cpu {

struct Quantization {
  int group_size;
  int bits;

  bool operator==(const Quantization&) const = default;
};

inline mx::Shape with_last_dimension(mx::Shape shape, int extent) {
  shape.back() = extent;
  return shape;
}

// What dense, quantised and packed products share. Inputs are {x, ...weight, bias if there is one}.
class LinearPrimitive : public CpuPrimitive {
 public:
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {with_last_dimension(inputs[0].shape(), inputs[1].shape(0))};
  }

 protected:
  void eval_product(const mx::array& x_input, const WeightRows& weight, const mx::array* bias_input,
                    mx::array& out) {
    allocate_output(out);
    if (out.size() == 0) return;
    const mx::array x = with_even_rows(x_input);
    const TokenRows tokens{.elements = x.data<void>(),
                           .type = element_type_of(x.dtype()),
                           .num_tokens = static_cast<int64_t>(out.size()) / weight.out_features,
                           .stride = rows_of(x).stride};
    LinearOutput output{.elements = out.data<void>(),
                        .type = element_type_of(out.dtype()),
                        .bias = nullptr,
                        .bias_type = ElementType::kFloat32};
    if (bias_input != nullptr) {
      const mx::array bias = with_contiguous_last_dimension(*bias_input);
      output.bias = bias.data<void>();
      output.bias_type = element_type_of(bias.dtype());
    }
    const Matmul product(weight, tokens, output);
    auto workspace = stream_workspace(stream(), product.workspace_floats());
    dispatch([product, workspace = std::move(workspace)] { product.run(workspace->data()); });
  }
};

// The node: x · weightᵀ (+ bias), the bias as its last input.
inline mx::array make_product(const mx::array& x, int out_features,
                              std::shared_ptr<mx::Primitive> primitive,
                              std::vector<mx::array> inputs, const std::optional<mx::array>& bias) {
  if (bias) inputs.push_back(*bias);
  return mx::array(with_last_dimension(x.shape(), out_features), x.dtype(), std::move(primitive),
                   std::move(inputs));
}

}  // namespace vllm_metal::cpu
