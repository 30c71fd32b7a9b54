// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/rms_norm.h"

#include <memory>
#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/elementwise.h"

namespace vllm_metal::cpu {

namespace {

// {x, weight} -> {normalized}, or {x, weight, residual} -> {sum, normalized}.
class RmsNorm : public CpuPrimitive {
 public:
  explicit RmsNorm(float eps) : eps_(eps) {}

  const char* name() const override { return "RmsNorm"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (mx::array& output : outputs) allocate_output(output);
    const mx::array x = with_even_rows(inputs[0]);
    const mx::array weight = with_even_rows(inputs[1]);
    const Rows x_rows = rows_of(x);
    RmsNormRows rows{};
    rows.type = element_type_of(x.dtype());
    rows.x = x.data<void>();
    rows.x_stride = x_rows.stride;
    rows.weight = weight.data<void>();
    rows.width = x_rows.width;
    rows.eps = eps_;
    rows.normalized = outputs.back().data<void>();
    if (inputs.size() == 3) {
      const mx::array residual = with_even_rows(inputs[2]);
      rows.residual = residual.data<void>();
      rows.residual_stride = rows_of(residual).stride;
      rows.sum = outputs[0].data<void>();
    }
    dispatch([rows, count = x_rows.count] {
      for_each_row(elementwise().rms_norm, rows, count, rows.width);
    });
  }

 private:
  float eps_;
};

}  // namespace

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  return mx::array(x.shape(), x.dtype(), std::make_shared<RmsNorm>(eps), {x, weight});
}

std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps) {
  auto outputs = mx::array::make_arrays({x.shape(), x.shape()}, {x.dtype(), x.dtype()},
                                        std::make_shared<RmsNorm>(eps), {x, weight, residual});
  return {std::move(outputs[0]), std::move(outputs[1])};
}

}  // namespace vllm_metal::cpu
