// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/linear.h"

#include <memory>
#include <vector>

#include "kernels/cpu/linear_primitive.h"

namespace vllm_metal::cpu {

namespace {

WeightRows dense_rows(const mx::array& weight) {
  return {.out_features = weight.shape(0),
          .in_features = weight.shape(1),
          .elements = weight.data<void>(),
          .stride = rows_of(weight).stride,
          .type = element_type_of(weight.dtype())};
}

WeightRows quantized_weight_rows(const mx::array& weight, const mx::array& scales,
                                 const mx::array& biases, const Quantization& quantization) {
  return {.out_features = weight.shape(0),
          .in_features = static_cast<int64_t>(scales.shape(1)) * quantization.group_size,
          .elements = weight.data<void>(),
          .stride = rows_of(weight).stride,
          .type = element_type_of(scales.dtype()),
          .bits = quantization.bits,
          .group_size = quantization.group_size,
          .scales = scales.data<void>(),
          .scales_stride = rows_of(scales).stride,
          .biases = biases.data<void>(),
          .biases_stride = rows_of(biases).stride};
}

// {x, weight[, bias]} -> {x · weightᵀ (+ bias)}
class Linear : public LinearPrimitive {
 public:
  const char* name() const override { return "Linear"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array weight = with_even_rows(inputs[1]);
    eval_product(inputs[0], dense_rows(weight), inputs.size() == 3 ? &inputs[2] : nullptr,
                 outputs[0]);
  }
};

// {x, weight, scales, biases[, bias]} -> {x · weightᵀ (+ bias)}
class QuantizedLinear : public LinearPrimitive {
 public:
  explicit QuantizedLinear(Quantization quantization) : quantization_(quantization) {}

  const char* name() const override { return "QuantizedLinear"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return quantization_ == static_cast<const QuantizedLinear&>(other).quantization_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array weight = with_even_rows(inputs[1]);
    const mx::array scales = with_even_rows(inputs[2]);
    const mx::array biases = with_even_rows(inputs[3]);
    eval_product(inputs[0], quantized_weight_rows(weight, scales, biases, quantization_),
                 inputs.size() == 5 ? &inputs[4] : nullptr, outputs[0]);
  }

 private:
  Quantization quantization_;
};

// {ids, weight, scales, biases} -> {dequantised rows}
class QuantizedRows : public CpuPrimitive {
 public:
  explicit QuantizedRows(Quantization quantization) : quantization_(quantization) {}

  const char* name() const override { return "QuantizedRows"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return quantization_ == static_cast<const QuantizedRows&>(other).quantization_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {{inputs[0].shape(0), inputs[2].shape(1) * quantization_.group_size}};
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& out = outputs[0];
    allocate_output(out);
    if (out.size() == 0) return;
    const mx::array ids = with_contiguous_last_dimension(inputs[0]);
    const mx::array weight = with_even_rows(inputs[1]);
    const mx::array scales = with_even_rows(inputs[2]);
    const mx::array biases = with_even_rows(inputs[3]);
    dispatch([rows = quantized_weight_rows(weight, scales, biases, quantization_),
              ids = ids.data<int32_t>(), num_ids = ids.size(), out = out.data<void>(),
              type = element_type_of(out.dtype())] { gather_rows(rows, ids, num_ids, out, type); });
  }

 private:
  Quantization quantization_;
};

}  // namespace

mx::array linear(const mx::array& x, const mx::array& weight,
                 const std::optional<mx::array>& bias) {
  return make_product(x, weight.shape(0), std::make_shared<Linear>(), {x, weight}, bias);
}

mx::array quantized_linear(const mx::array& x, const QuantizedMatrix& weight,
                           const std::optional<mx::array>& bias) {
  auto primitive = std::make_shared<QuantizedLinear>(Quantization{weight.group_size, weight.bits});
  return make_product(x, weight.out_features(), std::move(primitive),
                      {x, weight.weight, weight.scales, weight.biases}, bias);
}

mx::array quantized_rows(const QuantizedMatrix& matrix, const mx::array& ids, mx::Dtype dtype) {
  return mx::array({ids.shape(0), matrix.in_features()}, dtype,
                   std::make_shared<QuantizedRows>(Quantization{matrix.group_size, matrix.bits}),
                   {ids, matrix.weight, matrix.scales, matrix.biases});
}

}  // namespace vllm_metal::cpu
