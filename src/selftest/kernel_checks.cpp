// SPDX-License-Identifier: Apache-2.0
#include "selftest/kernel_checks.h"

#include <array>

#include "common/text.h"
#include "kernels/device_kernels.h"
#include "kernels/gpu/add_rms_norm.h"
#include "kernels/gpu/attention_plan.h"
#include "kernels/gpu/cache_kernels.h"
#include "kernels/gpu/device.h"
#include "kernels/gpu/kernel_guard.h"
#include "selftest/op_case.h"

namespace vllm_metal::selftest {

namespace {

constexpr std::array kDtypes = {mx::float32, mx::float16, mx::bfloat16};

const char* name_of(Place place) {
  switch (place) {
    case Place::kCpu:
      return "cpu";
    case Place::kGpu:
      return "gpu";
    default:
      return "gpu_fallback";
  }
}

// Sums in another order than the CPU's, fast mathematics, and 16-bit ops of MLX that round on the
// way. Errors of kernels that are wrong are far above.
double tolerance_on_gpu(mx::Dtype dtype) {
  return dtype == mx::float32 ? 1e-4 : fallback_tolerance_of(dtype).relative;
}

double tolerance_of(const OpCase& op, Place place, mx::Dtype dtype) {
  if (op.exactness == Exactness::kCopy) return 0;
  if (place != Place::kCpu) return tolerance_on_gpu(dtype);
  const double rounded = selftest::tolerance_of(dtype).relative;
  return op.exactness == Exactness::kProduct ? 4 * rounded : rounded;
}

void use(Place place) {
  mx::set_default_device(place == Place::kCpu ? mx::Device::cpu : mx::Device::gpu);
  set_device_kernels_enabled(place != Place::kGpuFallback);
}

std::vector<mx::array> evaluated(std::vector<mx::array> arrays) {
  mx::eval(arrays);
  return arrays;
}

std::vector<mx::array> reference(const OpCase& op, mx::Dtype dtype) {
  mx::set_default_device(mx::Device::cpu);
  set_device_kernels_enabled(false);
  return evaluated(op.compute({.rounded_to = dtype, .held_in = mx::float32}));
}

// Our kernels of the GPU, where they are what a check is about.
void expect_gpu_kernels(const OpCase& op, mx::Dtype dtype) {
  if (!gpu::kernels_available()) throw Skipped("this build has no kernels for this GPU");
  if (!op.gpu_kernels(dtype))
    throw Skipped("the GPU does not take the kernels, see gpu/compile; MLX's ops take their place");
}

Finding compare(const OpCase& op, Place place, mx::Dtype dtype, const Scope& scope) {
  const auto expected = reference(op, dtype);
  use(place);
  if (place == Place::kGpu && op.gpu_kernels) expect_gpu_kernels(op, dtype);
  auto actual = evaluated(op.compute({.rounded_to = dtype, .held_in = dtype}));
  if (scope.alter) scope.alter(actual);
  return {worst_error(actual, expected), tolerance_of(op, place, dtype)};
}

// That the GPU's compiler takes the kernels.
Finding compile_all(const std::vector<gpu::KernelUse>& kernels) {
  mx::set_default_device(mx::Device::gpu);
  if (!gpu::kernels_available()) throw Skipped("this build has no kernels for this GPU");
  for (const auto& kernel : kernels) gpu::compile(kernel.name, kernel.threads_per_group);
  return {0, 0, text(kernels.size(), " kernels")};
}

void add_compile_checks(std::vector<Check>& checks, bool quick) {
  for (mx::Dtype dtype : kDtypes)
    checks.push_back({text("gpu/compile/add_rms_norm/", dtype),
                      [dtype] { return compile_all({gpu::norm_kernel(dtype)}); }});
  for (int head_dim : head_dims(quick))
    for (mx::Dtype dtype : kDtypes)
      checks.push_back({text("gpu/compile/heads_of_", head_dim, "/", dtype), [dtype, head_dim] {
                          return compile_all(gpu::cache_kernels(dtype, head_dim));
                        }});
}

void add_checks(std::vector<Check>& checks, Place place, const Scope& scope) {
  for (const auto& cases :
       {layer_cases(scope.quick), cache_cases(scope.quick), attention_cases(scope.quick)})
    for (const OpCase& op : cases) {
      if (place == Place::kGpuFallback && !op.gpu_kernels) continue;  // as kGpu
      for (mx::Dtype dtype : kDtypes)
        checks.push_back({text(name_of(place), "/", op.name, "/", dtype),
                          [=] { return compare(op, place, dtype, scope); }});
    }
}

}  // namespace

std::function<bool(mx::Dtype)> cache_kernels_of(int head_dim) {
  return [head_dim](mx::Dtype dtype) { return gpu::kernels_allowed(dtype, head_dim); };
}

std::vector<int> head_dims(bool quick) {
  if (quick) return {64, 128};
  return {gpu::kHeadDims.begin(), gpu::kHeadDims.end()};
}

std::vector<Check> kernel_checks(const Scope& scope) {
  std::vector<Check> checks;
  add_checks(checks, Place::kCpu, scope);
  if (const auto reason = why_without_gpu(scope.why_no_gpu)) {
    for (Place place : {Place::kGpu, Place::kGpuFallback})
      checks.push_back(skipped(name_of(place), *reason));
    return checks;
  }
  add_compile_checks(checks, scope.quick);
  add_checks(checks, Place::kGpu, scope);
  add_checks(checks, Place::kGpuFallback, scope);
  return checks;
}

}  // namespace vllm_metal::selftest
