// SPDX-License-Identifier: Apache-2.0
#include "platform/cgroup.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace vllm_metal {

namespace {

namespace fs = std::filesystem;

// Files of a version of control groups.
struct Version {
  const char* folder;  // of the hierarchy, below the root
  const char* limit;
  const char* usage;
  std::array<std::string_view, 3> reclaimable;  // keys of memory.stat
};
constexpr Version kV1{"memory",
                      "memory.limit_in_bytes",
                      "memory.usage_in_bytes",
                      {"total_inactive_file", "total_active_file", ""}};
constexpr Version kV2{
    "", "memory.max", "memory.current", {"inactive_file", "active_file", "slab_reclaimable"}};

std::optional<uint64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // no such file, or "max"
}

uint64_t reclaimable_bytes(const fs::path& group, const Version& version) {
  std::ifstream file(group / "memory.stat");
  const auto& keys = version.reclaimable;
  uint64_t sum = 0, value = 0;
  for (std::string key; file >> key >> value;)
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) sum += value;
  return sum;
}

// What a group has left of its limit.
std::optional<SystemMemory> memory_of(const fs::path& group, const Version& version) {
  const auto limit = number_in(group / version.limit);
  if (!limit) return std::nullopt;
  const uint64_t charged = number_in(group / version.usage).value_or(0);
  const uint64_t used = charged - std::min(charged, reclaimable_bytes(group, version));
  return SystemMemory{*limit, *limit - std::min(*limit, used)};
}

void take_least(std::optional<SystemMemory>& least, const std::optional<SystemMemory>& other) {
  if (!other) return;
  if (!least) least = other;
  least->total = std::min(least->total, other->total);
  least->available = std::min(least->available, other->available);
}

// Whether a list of controllers, "cpu,memory", has that of memory.
bool has_memory(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');)
    if (name == "memory") return true;
  return false;
}

}  // namespace

std::optional<SystemMemory> cgroup_memory(const fs::path& root, const fs::path& membership) {
  std::optional<SystemMemory> least;
  std::ifstream file(membership);
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:/group
    std::istringstream fields(line);
    std::string hierarchy, controllers, group;
    if (!std::getline(std::getline(fields, hierarchy, ':'), controllers, ':')) continue;
    std::getline(fields, group);
    const bool v2 = controllers.empty();
    if (!v2 && !has_memory(controllers)) continue;
    const Version& version = v2 ? kV2 : kV1;
    const fs::path top = root / version.folder;
    // A container may see its own group as the root, whatever it is called outside: groups that
    // are not there have no limit.
    take_least(least, memory_of(top, version));
    fs::path inner = top;
    for (const fs::path& name : fs::path(group).relative_path()) {
      if (name == "..") break;
      take_least(least, memory_of(inner /= name, version));
    }
  }
  return least;
}

}  // namespace vllm_metal
