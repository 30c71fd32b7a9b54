// SPDX-License-Identifier: Apache-2.0
#include "platform/device.h"

#include <algorithm>
#include <fstream>
#include <stdexcept>
#include <variant>

#include "common/log.h"
#include "platform/memory.h"

namespace vllm_metal {

namespace {

// The processor's marketing name where MLX does not know it (Linux).
std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) {
      const auto colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  return "CPU";
}

std::string backend_of(const mx::Device& device) {
  if (device == mx::Device::cpu) return "cpu";
  return mx::metal::is_available() ? "metal" : "cuda";
}

template <typename T>
const T* find_info(const mx::Device& device, const char* key) {
  const auto& info = mx::device_info(device);
  const auto found = info.find(key);
  return found == info.end() ? nullptr : std::get_if<T>(&found->second);
}

}  // namespace

mx::Device select_device(DeviceChoice choice) {
  const mx::Device gpu(mx::Device::gpu), cpu(mx::Device::cpu);
  mx::Device device = cpu;
  if (choice != DeviceChoice::kCpu) {
    if (mx::is_available(gpu)) {
      device = gpu;
    } else if (choice == DeviceChoice::kGpu) {
      throw std::runtime_error(
          "[device] VLLM_MLX_DEVICE is gpu but MLX finds no GPU. Unset it or set it to cpu; on "
          "Linux with an "
          "NVIDIA GPU install the extra vllm-metal[cuda].");
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
  const SystemMemory memory = system_memory();
  DeviceInfo info{device,       backend_of(device), processor_name(),
                  memory.total, memory.available,   memory.total};
  if (device == mx::Device::cpu) return info;
  if (const auto* name = find_info<std::string>(device, "device_name")) info.name = *name;
  if (info.backend == "cuda") {  // memory of its own
    if (const auto* total = find_info<size_t>(device, "total_memory")) info.total_memory = *total;
    if (const auto* free = find_info<size_t>(device, "free_memory")) info.available_memory = *free;
    info.working_set = info.total_memory;
  }
  if (const auto* bytes = find_info<size_t>(device, "max_recommended_working_set_size"))
    info.working_set = *bytes;
  return info;
}

}  // namespace vllm_metal
