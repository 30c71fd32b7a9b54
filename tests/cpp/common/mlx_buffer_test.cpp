// SPDX-License-Identifier: Apache-2.0
#include "common/mlx_buffer.h"

#include <gmock/gmock.h>

#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/error_of.h"

namespace vllm_metal {
namespace {

class ReusableMemory : public testing::Test {
 protected:
  void SetUp() override { release_reusable_memory(); }
  void TearDown() override { release_reusable_memory(); }
};

mx::array output_of(int bytes) {
  mx::array output({bytes}, mx::uint8, nullptr, {});
  allocate_output(output);
  return output;
}

const void* address_of_one(int bytes) { return output_of(bytes).data<void>(); }

TEST_F(ReusableMemory, GoesToAnOutputOfLikeSize) {
  const void* address = address_of_one(1 << 20);
  EXPECT_EQ(reusable_bytes(), 1u << 20);
  EXPECT_EQ(address_of_one(1 << 20), address);
  EXPECT_EQ(address_of_one((1 << 20) - 1000), address);
  const mx::array much_smaller = output_of(1 << 19);
  EXPECT_NE(much_smaller.data<void>(), address);
  EXPECT_EQ(reusable_bytes(), 1u << 20);
}

TEST_F(ReusableMemory, IsNotSharedByOutputsInUse) {
  const mx::array first = output_of(1 << 20), second = output_of(1 << 20);
  EXPECT_NE(first.data<void>(), second.data<void>());
  EXPECT_EQ(reusable_bytes(), 0u);
}

TEST_F(ReusableMemory, LeavesSmallOutputsToTheHeap) {
  address_of_one(1000);
  EXPECT_EQ(reusable_bytes(), 0u);
}

// More than any address space has.
TEST_F(ReusableMemory, IsGivenBackBeforeMemoryIsRefused) {
  address_of_one(1 << 20);
  const size_t active = mx::get_active_memory();
  const auto refused = testing::HasSubstr("[memory] cannot allocate 1125899906842624 bytes");
  EXPECT_THAT(test::error_of([] { uninitialized({1 << 25, 1 << 25}, mx::uint8); }), refused);
  EXPECT_EQ(reusable_bytes(), 0u);
  EXPECT_THAT(test::error_of([] {
                mx::array output({1 << 25, 1 << 25}, mx::uint8, nullptr, {});
                allocate_output(output);
              }),
              refused);
  EXPECT_LE(mx::get_active_memory(), active);
}

TEST_F(ReusableMemory, AllocationsLeaveWhatWasAskedFor) {
  const auto allocate = [] { uninitialized({16}, mx::uint8); };
  leave_memory_free(size_t{1} << 50);
  EXPECT_THAT(test::error_of(allocate), testing::HasSubstr("[memory] cannot allocate 16 bytes"));
  leave_memory_free(0);
  EXPECT_NO_THROW(allocate());
}

TEST_F(ReusableMemory, IsLimitedAndForgetsTheOldest) {
  constexpr int kBytes = 48 << 20;
  constexpr size_t kMost = kMaxReusableBytes / kBytes;
  {
    std::vector<mx::array> outputs;
    for (size_t i = 0; i < kMost + 3; ++i) outputs.push_back(output_of(kBytes));
    address_of_one(1 << 20);  // the oldest of what is kept
    EXPECT_EQ(reusable_bytes(), 1u << 20);
  }
  EXPECT_LE(reusable_bytes(), kMaxReusableBytes);
  EXPECT_EQ(reusable_bytes(), kMost * kBytes);
  release_reusable_memory();
  EXPECT_EQ(reusable_bytes(), 0u);
}

TEST_F(ReusableMemory, IsLeftAloneByOutputsBeyondTheLimit) {
  address_of_one(1 << 20);
  address_of_one(static_cast<int>(kMaxReusableBytes) + 1);
  EXPECT_EQ(reusable_bytes(), 1u << 20);
}

TEST_F(ReusableMemory, GoesWhereItWouldExceedTheLimit) {
  address_of_one(8 << 20);
  const size_t limit = mx::set_memory_limit(mx::get_active_memory() + (1 << 20));
  address_of_one(1 << 19);
  EXPECT_EQ(reusable_bytes(), (8u << 20) + (1u << 19));
  address_of_one(4 << 20);
  EXPECT_EQ(reusable_bytes(), 4u << 20);
  mx::set_memory_limit(limit);
}

TEST_F(ReusableMemory, ServesManyThreads) {
  const size_t active = mx::get_active_memory();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 2000; ++i) {
        mx::array output = output_of((64 << 10) + (t + i) % 7 * 20'000);
        auto* bytes = output.data<uint8_t>();
        bytes[0] = bytes[output.size() - 1] = static_cast<uint8_t>(t);
        const mx::array other = output_of(200'000);
        EXPECT_EQ(bytes[0], t);
        EXPECT_EQ(bytes[output.size() - 1], t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(reusable_bytes(), 0u);
  release_reusable_memory();
  EXPECT_EQ(mx::get_active_memory(), active);
}

}  // namespace
}  // namespace vllm_metal
