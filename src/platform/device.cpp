// SPDX-License-Identifier: Apache-2.0
#include "platform/device.h"

#include <cstdlib>
#include <stdexcept>

#include "common/log.h"

namespace vllm_metal {

namespace {

template <typename T>
const T* find(const DeviceFacts& facts, const char* key) {
  const auto found = facts.find(key);
  return found == facts.end() ? nullptr : std::get_if<T>(&found->second);
}

}  // namespace

void lengthen_command_buffers(bool metal) {
  if (metal) ::setenv("MLX_MAX_OPS_PER_BUFFER", "1000", 0);
}

mx::Device select_device(DeviceChoice choice) {
  lengthen_command_buffers(mx::metal::is_available());
  const mx::Device gpu(mx::Device::gpu), cpu(mx::Device::cpu);
  mx::Device device = cpu;
  if (choice != DeviceChoice::kCpu) {
    if (mx::is_available(gpu)) {
      device = gpu;
    } else if (choice == DeviceChoice::kGpu) {
      throw std::runtime_error(
          "[device] VLLM_MLX_DEVICE is gpu but MLX finds no GPU. Unset it or set it to cpu; on "
          "Linux with an NVIDIA GPU install MLX's CUDA back end: see vllm-metal[cuda] in the "
          "README.");
    } else {
      log(LogLevel::kWarning,
          "No GPU that MLX can use: computing on the CPU. VLLM_MLX_DEVICE=cpu silences this "
          "warning.");
    }
  }
  mx::set_default_device(device);
  return device;
}

DeviceInfo describe_device(const mx::Device& device) {
  return describe_device(device, mx::metal::is_available(), mx::device_info(device),
                         system_memory());
}

DeviceInfo describe_device(const mx::Device& device, bool metal, const DeviceFacts& facts,
                           const SystemMemory& memory) {
  const std::string backend = device == mx::Device::cpu ? "cpu" : metal ? "metal" : "cuda";
  DeviceInfo info{device, backend, backend, memory.total, memory.available, memory.total};
  if (const auto* name = find<std::string>(facts, "device_name")) info.name = *name;
  if (device == mx::Device::cpu) return info;
  if (info.backend == "cuda") {  // memory of its own
    if (const auto* total = find<size_t>(facts, "total_memory")) info.total_memory = *total;
    if (const auto* free = find<size_t>(facts, "free_memory")) info.available_memory = *free;
    info.working_set = info.total_memory;
  }
  if (const auto* bytes = find<size_t>(facts, "max_recommended_working_set_size"))
    info.working_set = *bytes;
  return info;
}

}  // namespace vllm_metal
