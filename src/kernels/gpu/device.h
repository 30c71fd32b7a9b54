// SPDX-License-Identifier: Apache-2.0
// What a GPU does for our kernels: implemented in kernels/metal and kernels/cuda, of which the
// build takes the one that MLX was built for, else kernels/no_gpu.
#pragma once

#include <cstdint>
#include <vector>

#include "common/mlx.h"
#include "kernels/gpu/kernel_launch.h"

namespace vllm_metal::gpu {

// Which of the kernels' text a device compiles (see kernel_arguments.h).
enum class KernelTarget { kMetal, kCuda };

// Whether MLX finds the GPU that this build has kernels for.
bool kernels_available();

KernelTarget kernel_target();

// An int32 array that kernels can look values up in at the speed of the device's own memory.
mx::array lookup_array(const std::vector<int32_t>& values, const mx::Shape& shape);

// Compiles a kernel and makes ready what runs it with so many threads a group, once in a process.
// Throws std::runtime_error with the compiler's words. The launch does the same if need be. For
// CUDA, the device's context is the current one.
void compile(const KernelName& name, int threads_per_group);

// All four are for the eval of a primitive, on the stream that it runs on.

// Gives `output` (row contiguous) memory of its own.
void allocate(mx::array& output, const mx::Stream& stream);
// Runs a kernel once those before it have written what it reads. At least one group.
void launch(const KernelLaunch& kernel, const mx::Stream& stream);
// Keeps an array that is no input of the primitive until the kernels launched so far have run.
void hold(const mx::array& temporary, const mx::Stream& stream);
// Has a failure of what was launched so far noted among the errors of the step
// (cpu/kernel_errors.h). MLX (0.32.4) would tell of it at the next step where the last work that
// Metal was handed for this one succeeds.
void watch(const mx::Stream& stream);

}  // namespace vllm_metal::gpu
