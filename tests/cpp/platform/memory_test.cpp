// SPDX-License-Identifier: Apache-2.0
#include "platform/memory.h"

#include <gtest/gtest.h>

namespace vllm_metal {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(SystemMemory, IsPositiveAndAvailableIsPartOfIt) {
  const SystemMemory memory = system_memory();
  EXPECT_GT(memory.available, 0u);
  EXPECT_LE(memory.available, memory.total);
}

TEST(MemoryPressure, GoesByTheShareThatIsAvailable) {
  EXPECT_EQ(pressure_of({32 * kGiB, 32 * kGiB}), MemoryPressure::kNormal);
  EXPECT_EQ(pressure_of({32 * kGiB, 2 * kGiB}), MemoryPressure::kNormal);
  EXPECT_EQ(pressure_of({32 * kGiB, 2 * kGiB - 1}), MemoryPressure::kWarning);
  EXPECT_EQ(pressure_of({32 * kGiB, kGiB}), MemoryPressure::kWarning);
  EXPECT_EQ(pressure_of({32 * kGiB, kGiB - 1}), MemoryPressure::kCritical);
  EXPECT_EQ(pressure_of({32 * kGiB, 0}), MemoryPressure::kCritical);
}

#if !defined(__APPLE__)  // which says so itself
TEST(MemoryPressure, IsThatOfTheMemoryThatThereIs) {
  EXPECT_EQ(memory_pressure(), pressure_of(system_memory()));
}
#endif

}  // namespace
}  // namespace vllm_metal
