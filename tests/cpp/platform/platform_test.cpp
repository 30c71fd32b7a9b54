// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <cstdlib>
#include <stdexcept>

#include "common/log.h"
#include "platform/device.h"
#include "platform/memory.h"

namespace vllm_metal {
namespace {

TEST(Memory, AvailableIsPartOfTotal) {
  const SystemMemory memory = system_memory();
  EXPECT_GT(memory.available, uint64_t{64} << 20);
  EXPECT_GE(memory.total, memory.available);
  EXPECT_LT(memory.total, uint64_t{1} << 50);
}

TEST(Device, CommandBuffersOfMetalAreLongUnlessTheUserSaysOtherwise) {
  const char* name = "MLX_MAX_OPS_PER_BUFFER";
  ASSERT_EQ(::unsetenv(name), 0);
  lengthen_command_buffers(false);
  EXPECT_EQ(std::getenv(name), nullptr);
  lengthen_command_buffers(true);
  EXPECT_STREQ(std::getenv(name), "1000");
  ASSERT_EQ(::setenv(name, "77", 1), 0);
  lengthen_command_buffers(true);
  EXPECT_STREQ(std::getenv(name), "77");
  ASSERT_EQ(::unsetenv(name), 0);
}

TEST(Device, CpuIsTakenWhenAskedFor) {
  const mx::Device device = select_device(DeviceChoice::kCpu);
  EXPECT_EQ(device, mx::Device::cpu);
  EXPECT_EQ(mx::default_device(), mx::Device::cpu);
  const DeviceInfo info = describe_device(device);
  EXPECT_EQ(info.backend, "cpu");
  EXPECT_FALSE(info.name.empty());
  EXPECT_EQ(info.total_memory, system_memory().total);
}

TEST(Device, WithoutGpuTheCpuWithOneWarningOrAnError) {
  if (mx::is_available(mx::Device(mx::Device::gpu))) GTEST_SKIP() << "this machine has a GPU";
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel level, const std::string& message) {
    if (level == LogLevel::kWarning) warnings.push_back(message);
  });
  EXPECT_EQ(select_device(DeviceChoice::kGpuIfAvailable), mx::Device::cpu);
  EXPECT_THAT(warnings, testing::ElementsAre(testing::HasSubstr("VLLM_MLX_DEVICE=cpu")));
  EXPECT_THROW(select_device(DeviceChoice::kGpu), std::runtime_error);
  set_log_sink({});
}

}  // namespace
}  // namespace vllm_metal
