// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/device.h"

#include <mlx/backend/cuda/device.h>
#include <mlx/backend/cuda/utils.h>

#include <vector>

#include "kernels/cuda/compiler.h"
#include "kernels/cuda/device_memory.h"

namespace vllm_metal::gpu {

bool kernels_available() { return mx::cu::is_available(); }

KernelTarget kernel_target() { return KernelTarget::kCuda; }

// What MLX makes of host values lies in host memory, where each look-up takes a microsecond or two.
// Converted from a dtype of another size they must be copied, to memory of the device.
mx::array lookup_array(const std::vector<int32_t>& values, const mx::Shape& shape) {
  return mx::astype(mx::array(values.begin(), shape, mx::int64), mx::int32);
}

void compile(const KernelName& name, int) { compiled_kernel(name); }

void allocate(mx::array& output, const mx::Stream& stream) {
  mx::cu::CommandEncoder& encoder = mx::cu::get_command_encoder(stream);
  allocate_on_device(output, encoder.device().cuda_device(), encoder.stream());
}

void launch(const KernelLaunch& kernel, const mx::Stream& stream) {
  mx::cu::CommandEncoder& encoder = mx::cu::get_command_encoder(stream);
  const std::vector<KernelLaunch::Argument>& arguments = kernel.arguments();
  std::vector<const char*> pointers(arguments.size());
  std::vector<void*> values;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const KernelLaunch::Argument& argument = arguments[i];
    if (argument.use == KernelLaunch::Use::kValue) {
      values.push_back(const_cast<char*>(argument.value.data()));  // NOLINT: only read
      continue;
    }
    if (argument.use == KernelLaunch::Use::kRead) {
      encoder.set_input_array(*argument.array);
    } else {
      encoder.set_output_array(*argument.array);
    }
    pointers[i] = mx::gpu_ptr<char>(*argument.array) + argument.offset;
    values.push_back(&pointers[i]);
  }
  encoder.add_kernel_node_raw(compiled_kernel(kernel.name()),
                              dim3(kernel.groups_x(), kernel.groups_y(), 1),
                              dim3(kernel.threads_per_group(), 1, 1), {}, 0, values.data());
}

void hold(const mx::array& temporary, const mx::Stream& stream) {
  mx::cu::get_command_encoder(stream).add_temporary(temporary);
}

void watch(const mx::Stream&) {}  // CUDA's errors stay: whatever comes next fails

}  // namespace vllm_metal::gpu
