// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/driver.h"

#include <stdexcept>

#include "common/text.h"

namespace vllm_metal::gpu {

void check_driver(const char* call, CUresult result) {
  if (result == CUDA_SUCCESS) return;
  const char* message = nullptr;
  cuGetErrorString(result, &message);
  throw std::runtime_error(
      text("[cuda] ", call, " failed: ", message != nullptr ? message : "unknown error", "."));
}

}  // namespace vllm_metal::gpu
