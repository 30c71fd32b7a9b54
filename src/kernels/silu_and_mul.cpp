// SPDX-License-Identifier: Apache-2.0
#include "kernels/silu_and_mul.h"

#include <stdexcept>

#include "common/text.h"
#include "kernels/checks.h"
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

}  // namespace

mx::array silu_and_mul(const mx::array& gate_up) {
  check_arguments(gate_up);
  if (use_cpu_kernels()) return cpu::silu_and_mul(gate_up);
  return silu_and_mul_fallback(gate_up);
}

mx::array silu_and_mul_fallback(const mx::array& gate_up) {
  check_arguments(gate_up);
  const auto halves = mx::split(mx::astype(gate_up, mx::float32), 2, -1);
  const mx::array& gate = halves[0];
  const mx::array& up = halves[1];
  return mx::astype(gate * mx::sigmoid(gate) * up, gate_up.dtype());
}

}  // namespace vllm_metal
