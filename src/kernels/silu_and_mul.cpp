// SPDX-License-Identifier: Apache-2.0
#include "kernels/silu_and_mul.h"

#include <stdexcept>
#include <vector>

#include "common/text.h"
#include "kernels/checks.h"
#include "kernels/compile_op.h"
#include "kernels/cpu/silu_and_mul.h"
#include "kernels/device_kernels.h"

namespace vllm_metal {

namespace {

void check_arguments(const mx::array& gate_up) {
  check_floating("silu_and_mul", "gate_up", gate_up);
  if (gate_up.ndim() == 0 || gate_up.shape(-1) % 2 != 0) {
    throw std::invalid_argument(
        text("[silu_and_mul] the last dimension of gate_up must be even, "
             "gate and up, but its shape is ",
             gate_up.shape(), "."));
  }
}

std::vector<mx::array> product(const std::vector<mx::array>& gate_and_up) {
  const mx::array gate = mx::astype(gate_and_up[0], mx::float32);
  const mx::array up = mx::astype(gate_and_up[1], mx::float32);
  return {mx::astype(gate * mx::sigmoid(gate) * up, gate_and_up[0].dtype())};
}

}  // namespace

mx::array silu_and_mul(const mx::array& gate_up) {
  check_arguments(gate_up);
  if (use_cpu_kernels()) return cpu::silu_and_mul(gate_up);
  if (use_compiled_ops()) return silu_and_mul_compiled(gate_up);
  return silu_and_mul_fallback(gate_up);
}

mx::array silu_and_mul_fallback(const mx::array& gate_up) {
  check_arguments(gate_up);
  return product(mx::split(gate_up, 2, -1)).front();
}

mx::array silu_and_mul_compiled(const mx::array& gate_up) {
  check_arguments(gate_up);
  static const auto compiled = compile_op(product);
  return compiled(mx::split(gate_up, 2, -1)).front();
}

}  // namespace vllm_metal
