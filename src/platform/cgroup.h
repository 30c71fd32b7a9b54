// SPDX-License-Identifier: Apache-2.0
// Memory limits of Linux's control groups, which containers and services run in.
#pragma once

#include <filesystem>
#include <optional>

#include "platform/memory.h"

namespace vllm_metal {

// The least limit of the process's group and those around it, and the least that one of them has
// left; nothing without a limit. Groups are those of `membership` (proc(5), /proc/pid/cgroup) below
// `root`, of version 2 or of version 1's memory controller
// (https://docs.kernel.org/admin-guide/cgroup-v2.html, …/cgroup-v1/memory.html). Files and slabs
// that the system drops before it runs out count as left, as MemAvailable counts them.
std::optional<SystemMemory> cgroup_memory(
    const std::filesystem::path& root = "/sys/fs/cgroup",
    const std::filesystem::path& membership = "/proc/self/cgroup");

}  // namespace vllm_metal
