// SPDX-License-Identifier: Apache-2.0
#include "platform/memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>

#include "common/mlx.h"
#include "common/mlx_buffer.h"
#include "platform/cgroup.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif

namespace vllm_metal {

#if defined(__APPLE__)

SystemMemory system_memory() {
  uint64_t total = 0;
  size_t size = sizeof(total);
  if (sysctlbyname("hw.memsize", &total, &size, nullptr, 0) != 0)
    throw std::runtime_error("[memory] sysctl hw.memsize failed.");
  vm_statistics64_data_t pages{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&pages),
                        &count) != KERN_SUCCESS)
    throw std::runtime_error("[memory] host_statistics64 failed.");
  return memory_of_mac(total, {.page_bytes = static_cast<uint64_t>(getpagesize()),
                               .free = pages.free_count,
                               .inactive = pages.inactive_count,
                               .purgeable = pages.purgeable_count});
}

MemoryPressure memory_pressure() {
  int level = 0;
  size_t size = sizeof(level);
  if (sysctlbyname("kern.memorystatus_vm_pressure_level", &level, &size, nullptr, 0) != 0)
    return pressure_of(system_memory());
  return pressure_of_level(level);
}

#else

namespace {

// A line "MemAvailable:   123 kB" of /proc/meminfo, in bytes.
std::optional<uint64_t> meminfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  for (std::string name, rest; file >> name; std::getline(file, rest))
    if (name == key + ":") {
      uint64_t kilobytes = 0;
      file >> kilobytes;
      return kilobytes * 1024;
    }
  return std::nullopt;
}

}  // namespace

SystemMemory system_memory() {
  auto total = meminfo("MemTotal"), available = meminfo("MemAvailable");
  if (!total || !available)
    throw std::runtime_error("[memory] /proc/meminfo lacks MemTotal or MemAvailable.");
  SystemMemory memory{*total, *available};
  if (const auto group = cgroup_memory()) {
    memory.total = std::min(memory.total, group->total);
    memory.available = std::min(memory.available, group->available);
  }
  return memory;
}

MemoryPressure memory_pressure() { return pressure_of(system_memory()); }

#endif

MemoryPressure pressure_of(const SystemMemory& memory) {
  if (memory.available < memory.total / 32) return MemoryPressure::kCritical;
  return memory.available < memory.total / 16 ? MemoryPressure::kWarning : MemoryPressure::kNormal;
}

SystemMemory memory_of_mac(uint64_t total, const MacPages& pages) {
  // Inactive and purgeable pages are given to whoever asks, as Activity Monitor counts them.
  const uint64_t available = (pages.free + pages.inactive + pages.purgeable) * pages.page_bytes;
  return {total, std::min(total, available)};
}

MemoryPressure pressure_of_level(int level) {
  // The values of DISPATCH_MEMORYPRESSURE_NORMAL, _WARN and _CRITICAL in <dispatch/source.h>.
  if (level >= 4) return MemoryPressure::kCritical;
  return level >= 2 ? MemoryPressure::kWarning : MemoryPressure::kNormal;
}

bool can_wire(const mx::Device& device, bool metal) { return metal && device == mx::Device::gpu; }

namespace {

struct Limits {
  size_t memory;
  size_t cache;
  bool wires;
};

// Those before the plan's.
std::optional<Limits> limits_before;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

}  // namespace

void apply_memory_limits(const MemoryPlan& plan) {
  const bool wires = can_wire(mx::default_device(), mx::metal::is_available());
  const size_t memory = mx::set_memory_limit(plan.memory_limit);
  const size_t cache = mx::set_cache_limit(plan.cache_limit);
  if (wires) mx::set_wired_limit(plan.wired_limit);
  if (!limits_before) limits_before = Limits{memory, cache, wires};
}

void return_unused_memory() {
  release_reusable_memory();
  mx::clear_cache();
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

void release_memory_limits() {
  if (!limits_before) return;
  return_unused_memory();
  if (limits_before->wires) mx::set_wired_limit(0);
  mx::set_memory_limit(limits_before->memory);
  mx::set_cache_limit(limits_before->cache);
  limits_before.reset();
}

}  // namespace vllm_metal
