// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"

#include <stdexcept>

#include "common/text.h"
#include "kernels/checks.h"
#include "kernels/cpu/rms_norm.h"
#include "kernels/device_kernels.h"
#include "kernels/gpu/add_rms_norm.h"

namespace vllm_metal {

namespace {

void check_arguments(const char* op, const mx::array& x, const mx::array& weight) {
  check_floating(op, "x", x);
  if (x.ndim() == 0) throw std::invalid_argument(text("[", op, "] x must have a dimension."));
  check_shape(op, "weight", weight, {x.shape(-1)});
  check_same_dtype(op, "weight", weight, "x", x);
}

void check_residual(const mx::array& x, const mx::array& residual) {
  check_shape("add_rms_norm", "residual", residual, x.shape());
  check_same_dtype("add_rms_norm", "residual", residual, "x", x);
}

}  // namespace

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  check_arguments("rms_norm", x, weight);
  if (use_cpu_kernels()) return cpu::rms_norm(x, weight, eps);
  return rms_norm_fallback(x, weight, eps);
}

mx::array rms_norm_fallback(const mx::array& x, const mx::array& weight, float eps) {
  check_arguments("rms_norm", x, weight);
  return mx::fast::rms_norm(x, weight, eps);
}

std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps) {
  check_arguments("add_rms_norm", x, weight);
  check_residual(x, residual);
  if (use_cpu_kernels()) return cpu::add_rms_norm(x, residual, weight, eps);
  if (use_gpu_kernels() && gpu::has_norm_kernel(x.dtype()))
    return gpu::add_rms_norm(x, residual, weight, eps);
  return add_rms_norm_fallback(x, residual, weight, eps);
}

std::pair<mx::array, mx::array> add_rms_norm_fallback(const mx::array& x, const mx::array& residual,
                                                      const mx::array& weight, float eps) {
  check_arguments("add_rms_norm", x, weight);
  check_residual(x, residual);
  mx::array sum = x + residual;
  mx::array normalized = mx::fast::rms_norm(sum, weight, eps);
  return {std::move(sum), std::move(normalized)};
}

}  // namespace vllm_metal
