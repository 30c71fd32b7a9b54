// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/mlx.h"
#include "platform/memory_plan.h"

namespace vllm_metal {

// Memory of the machine in bytes, as the operating system counts it. A container's limit counts
// where it is lower.
struct SystemMemory {
  uint64_t total;
  uint64_t available;  // without swapping others out
};
SystemMemory system_memory();

// How short of memory the system is. A Mac says so itself (kern.memorystatus_vm_pressure_level);
// elsewhere it goes by the share that is available.
enum class MemoryPressure { kNormal, kWarning, kCritical };
MemoryPressure memory_pressure();
MemoryPressure pressure_of(const SystemMemory& memory);

// What follows from what macOS says. Arithmetic, so that every system can test it.
struct MacPages {
  uint64_t page_bytes;
  uint64_t free, inactive, purgeable;  // pages
};
SystemMemory memory_of_mac(uint64_t total, const MacPages& pages);
// A level of kern.memorystatus_vm_pressure_level.
MemoryPressure pressure_of_level(int level);

// Whether memory can be kept from being paged out: where the default device is a GPU by Metal.
bool can_wire(const mx::Device& device, bool metal);

// Sets MLX's limits to those of the plan, for the default device. On Metal, memory up to the wired
// limit stays resident.
void apply_memory_limits(const MemoryPlan& plan);
// Gives back to the system what MLX, the kernels and the heap keep for reuse.
void return_unused_memory();

// Back to what they were, with nothing wired and nothing kept for reuse. Does nothing twice.
void release_memory_limits();

}  // namespace vllm_metal
