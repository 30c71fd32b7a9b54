// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

namespace vllm_metal::gpu {

// Throws std::runtime_error that names `call` unless it succeeded.
void check_driver(const char* call, CUresult result);

}  // namespace vllm_metal::gpu
