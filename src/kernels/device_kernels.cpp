// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_kernels.h"

#include <atomic>

#include "common/mlx.h"
#include "kernels/gpu/device.h"

namespace vllm_metal {

namespace {
std::atomic<bool> enabled{true};
std::atomic<bool> metal_enabled{false};
}  // namespace

bool device_kernels_enabled() { return enabled; }
void set_device_kernels_enabled(bool value) { enabled = value; }

bool use_cpu_kernels() { return enabled && mx::default_device() == mx::Device::cpu; }

void set_metal_kernels_enabled(bool value) { metal_enabled = value; }

bool use_gpu_kernels() {
  return enabled && mx::default_device() == mx::Device::gpu && gpu::kernels_available() &&
         (metal_enabled || gpu::kernel_target() == gpu::KernelTarget::kCuda);
}

}  // namespace vllm_metal
