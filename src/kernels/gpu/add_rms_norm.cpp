// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/add_rms_norm.h"

#include <memory>
#include <vector>

#include "kernels/gpu/gpu_primitive.h"
#include "kernels/gpu/kernel_arguments.h"
#include "kernels/gpu/kernel_guard.h"

namespace vllm_metal::gpu {

namespace {

// Weights are there long before, and a node less for each is worth it.
mx::array contiguous_if_known(const mx::array& weight) {
  const bool is_known = weight.status() == mx::array::Status::available;
  return is_known && weight.flags().row_contiguous ? weight : mx::contiguous(weight);
}

// {x, residual, weight} -> {x + residual, its norm}
class AddRmsNorm : public GpuPrimitive {
 public:
  explicit AddRmsNorm(float eps) : eps_(eps) {}

  const char* name() const override { return "AddRmsNorm"; }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (mx::array& output : outputs) allocate(output, stream());
    const mx::array& x = inputs[0];
    if (x.size() == 0) return;
    const AddRmsNormArguments arguments{x.shape(-1), eps_};
    KernelLaunch kernel(norm_kernel(x.dtype()));
    for (const mx::array& input : inputs) kernel.reads(input);
    for (const mx::array& output : outputs) kernel.writes(output);
    kernel.value(arguments);
    launch(kernel.groups(static_cast<int64_t>(x.size()) / x.shape(-1), 1), stream());
  }

 private:
  float eps_;
};

}  // namespace

KernelUse norm_kernel(mx::Dtype dtype) {
  return {{"add_rms_norm", element_name(dtype)}, kNormThreads};
}

bool has_norm_kernel(mx::Dtype dtype) { return kernel_allowed(norm_kernel(dtype)); }

std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps) {
  auto outputs = mx::array::make_arrays(
      {x.shape(), x.shape()}, {x.dtype(), x.dtype()}, std::make_shared<AddRmsNorm>(eps),
      {mx::contiguous(x), mx::contiguous(residual), contiguous_if_known(weight)});
  return {std::move(outputs[0]), std::move(outputs[1])};
}

}  // namespace vllm_metal::gpu
