// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "kernels/gpu/device.h"

namespace vllm_metal::gpu {

// The text that a device compiles at run time for one kernel. For Metal the kernel's entry point
// is named name.identifier(); for CUDA it is asked for by name.expression().
std::string kernel_source(KernelTarget target, const KernelName& name);

// The files of src/kernels/gpu, which the build puts into the program (cmake/EmbedKernels.cmake).
extern const char* const kMetalPrelude;
extern const char* const kCudaPrelude;
extern const char* const kKernelText;  // what sources.txt lists, in its order

}  // namespace vllm_metal::gpu
