// SPDX-License-Identifier: Apache-2.0
#include "platform/memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>

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
  // Inactive and purgeable pages are given to whoever asks, as Activity Monitor counts them.
  const uint64_t free_pages =
      uint64_t{pages.free_count} + pages.inactive_count + pages.purgeable_count;
  return {total, std::min<uint64_t>(total, free_pages * static_cast<uint64_t>(getpagesize()))};
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

std::optional<uint64_t> cgroup_value(const char* file_name) {
  std::ifstream file(std::string("/sys/fs/cgroup/") + file_name);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // no cgroup v2, or "max"
}

}  // namespace

SystemMemory system_memory() {
  auto total = meminfo("MemTotal"), available = meminfo("MemAvailable");
  if (!total || !available)
    throw std::runtime_error("[memory] /proc/meminfo lacks MemTotal or MemAvailable.");
  SystemMemory memory{*total, *available};
  if (auto limit = cgroup_value("memory.max"); limit && *limit < memory.total) {
    const uint64_t used = cgroup_value("memory.current").value_or(0);
    memory.total = *limit;
    memory.available = std::min(memory.available, *limit - std::min(*limit, used));
  }
  return memory;
}

#endif

}  // namespace vllm_metal
