// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_kernels.h"

#include <atomic>

#include "common/mlx.h"
#include "kernels/gpu/device.h"
#include "kernels/gpu/kernel_guard.h"

namespace vllm_metal {

namespace {
std::atomic<bool> enabled{true};
}  // namespace

bool device_kernels_enabled() { return enabled; }
void set_device_kernels_enabled(bool value) { enabled = value; }

bool use_cpu_kernels() { return enabled && mx::default_device() == mx::Device::cpu; }

bool use_gpu_kernels() {
  return enabled && mx::default_device() == mx::Device::gpu && gpu::kernels_available();
}

bool use_gpu_cache_kernels(const mx::array& cache) {
  return use_gpu_kernels() && gpu::kernels_allowed(cache.dtype(), cache.shape(2));
}

bool use_compiled_ops() { return enabled && mx::default_device() == mx::Device::gpu; }

}  // namespace vllm_metal
