// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace vllm_metal {

// Memory of the machine in bytes, as the operating system counts it. A container's limit counts
// where it is lower.
struct SystemMemory {
  uint64_t total;
  uint64_t available;  // without swapping others out
};
SystemMemory system_memory();

}  // namespace vllm_metal
