// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/silu_and_mul.h"

#include <memory>
#include <vector>

#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/elementwise.h"

namespace vllm_metal::cpu {

namespace {

class SiluAndMul : public CpuPrimitive {
 public:
  const char* name() const override { return "SiluAndMul"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    allocate_output(outputs[0]);
    const mx::array gate_up = with_even_rows(inputs[0]);
    const Rows gate_up_rows = rows_of(gate_up);
    const SiluAndMulRows rows{.type = element_type_of(gate_up.dtype()),
                              .gate_up = gate_up.data<void>(),
                              .stride = gate_up_rows.stride,
                              .out = outputs[0].data<void>(),
                              .width = gate_up_rows.width / 2};
    dispatch([rows, count = gate_up_rows.count] {
      for_each_row(elementwise().silu_and_mul, rows, count, rows.width);
    });
  }
};

}  // namespace

mx::array silu_and_mul(const mx::array& gate_up) {
  mx::Shape shape = gate_up.shape();
  shape.back() /= 2;
  return mx::array(std::move(shape), gate_up.dtype(), std::make_shared<SiluAndMul>(), {gate_up});
}

}  // namespace vllm_metal::cpu
