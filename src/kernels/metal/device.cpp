// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/device.h"

#include <mlx/backend/metal/device.h>

#include <exception>
#include <memory>
#include <stdexcept>

#include "common/mlx_buffer.h"
#include "common/text.h"
#include "kernels/cpu/kernel_errors.h"
#include "kernels/gpu/kernel_source.h"

namespace vllm_metal::gpu {

namespace {

// MLX keeps libraries and pipelines by name: each is compiled once in a process.
MTL::ComputePipelineState* pipeline_of(const KernelName& name, const mx::Device& on) {
  mx::metal::Device& device = mx::metal::device(on);
  const std::string identifier = name.identifier();
  MTL::Library* library = device.get_library(
      "vllm_metal_" + identifier, [&] { return kernel_source(KernelTarget::kMetal, name); });
  return device.get_kernel(identifier, library);
}

void bind(mx::metal::CommandEncoder& encoder, const KernelLaunch::Argument& argument, int index) {
  const auto offset = static_cast<int64_t>(argument.offset);
  switch (argument.use) {
    case KernelLaunch::Use::kRead:
      return encoder.set_input_array(*argument.array, index, offset);
    case KernelLaunch::Use::kCache:
      // MLX commits its command buffer when arrays of 40 or 50 Mi elements are bound to it, and
      // would count the whole cache at each op. What is bound as a buffer before is not counted
      // again.
      encoder.set_buffer(static_cast<const MTL::Buffer*>(argument.array->buffer().ptr()), index,
                         argument.array->offset() + offset);
      [[fallthrough]];
    case KernelLaunch::Use::kWrite: {
      mx::array array = *argument.array;  // a handle: MLX asks for one that is not const
      return encoder.set_output_array(array, index, offset);
    }
    case KernelLaunch::Use::kValue:
      return encoder.set_bytes(argument.value.data(), static_cast<int>(argument.value.size()),
                               index);
  }
}

}  // namespace

bool kernels_available() { return mx::metal::is_available(); }

KernelTarget kernel_target() { return KernelTarget::kMetal; }

mx::array lookup_array(const std::vector<int32_t>& values, const mx::Shape& shape) {
  return mx::array(values.begin(), shape, mx::int32);
}

void compile(const KernelName& name, int threads_per_group) {
  const NS::UInteger most = pipeline_of(name, mx::Device::gpu)->maxTotalThreadsPerThreadgroup();
  if (most < static_cast<NS::UInteger>(threads_per_group)) {
    throw std::runtime_error(text("[metal] ", name.expression(), " has registers for ", most,
                                  " threads a threadgroup but needs ", threads_per_group, "."));
  }
}

void allocate(mx::array& output, const mx::Stream&) { allocate_from_mlx(output); }

void launch(const KernelLaunch& kernel, const mx::Stream& stream) {
  mx::metal::CommandEncoder& encoder = mx::metal::get_command_encoder(stream);
  encoder.set_compute_pipeline_state(pipeline_of(kernel.name(), stream.device));
  int index = 0;
  for (const KernelLaunch::Argument& argument : kernel.arguments())
    bind(encoder, argument, index++);
  encoder.dispatch_threadgroups(MTL::Size(kernel.groups_x(), kernel.groups_y(), 1),
                                MTL::Size(kernel.threads_per_group(), 1, 1));
}

void hold(const mx::array& temporary, const mx::Stream& stream) {
  mx::metal::get_command_encoder(stream).add_temporary(temporary);
}

void watch(const mx::Stream& stream) {
  const std::shared_ptr<cpu::KernelErrors> errors = cpu::current_kernel_errors();
  if (errors == nullptr) return;
  MTL::CommandBuffer* buffer = mx::metal::get_command_encoder(stream).get_command_buffer();
  buffer->addCompletedHandler([errors](MTL::CommandBuffer* done) {
    if (done->status() != MTL::CommandBufferStatusError) return;
    const char* reason = done->error()->localizedDescription()->utf8String();
    errors->note(std::make_exception_ptr(std::runtime_error(text("[metal] ", reason))));
  });
}

}  // namespace vllm_metal::gpu
