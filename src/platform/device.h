// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <variant>

#include "common/mlx.h"
#include "config/env.h"
#include "platform/memory.h"

namespace vllm_metal {

struct DeviceInfo {
  mx::Device device;
  std::string backend;        // "metal", "cuda" or "cpu"
  std::string name;           // as the system calls it, e.g. "Apple M3 Max"
  uint64_t total_memory;      // bytes the device can address: unified memory, or the GPU's own
  uint64_t available_memory;  // bytes free for a new process now
  uint64_t working_set;       // bytes the device recommends to use at most, or all of them
};

// By default MLX ends a command buffer of Metal after 40 or 50 ops, of which a decode step has
// hundreds, and each end takes the GPU some 20 us (https://github.com/ml-explore/mlx/issues/4521).
// What a buffer may bind in bytes still ends it. MLX_MAX_OPS_PER_BUFFER, where it is set, counts.
void lengthen_command_buffers(bool metal);

// Makes MLX's default device the one that `choice` names. GPU unless told otherwise; without a GPU
// the CPU, with a warning, unless the GPU was asked for: std::runtime_error.
mx::Device select_device(DeviceChoice choice);

// Facts about `device`, now.
DeviceInfo describe_device(const mx::Device& device);

// What MLX says of a device: "device_name", "max_recommended_working_set_size", …
using DeviceFacts = std::unordered_map<std::string, std::variant<std::string, size_t>>;
// The same, of a machine that is described: `metal` tells a GPU by Metal from one by CUDA.
DeviceInfo describe_device(const mx::Device& device, bool metal, const DeviceFacts& facts,
                           const SystemMemory& memory);

}  // namespace vllm_metal
