// SPDX-License-Identifier: Apache-2.0
// Macs as macOS and MLX describe them, on any machine: chips, sizes, what a running system leaves.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "common/text.h"
#include "platform/device.h"
#include "platform/memory.h"
#include "platform/memory_plan.h"

namespace vllm_metal {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20, kGiB = uint64_t{1} << 30;
constexpr uint64_t kPage = 16384;

struct Mac {
  std::string chip;
  std::vector<uint64_t> gigabytes;
};

const std::vector<Mac>& macs() {
  static const std::vector<Mac> all{
      {"Apple M1", {8, 16}},
      {"Apple M1 Pro", {16, 32}},
      {"Apple M1 Max", {32, 64}},
      {"Apple M1 Ultra", {64, 128}},
      {"Apple M2", {8, 16, 24}},
      {"Apple M2 Pro", {16, 32}},
      {"Apple M2 Max", {32, 64, 96}},
      {"Apple M2 Ultra", {64, 128, 192}},
      {"Apple M3", {8, 16, 24}},
      {"Apple M3 Pro", {18, 36}},
      {"Apple M3 Max", {36, 48, 64, 96, 128}},
      {"Apple M3 Ultra", {96, 256, 512}},
      {"Apple M4", {16, 24, 32}},
      {"Apple M4 Pro", {24, 48, 64}},
      {"Apple M4 Max", {36, 48, 64, 128}},
      {"Apple M5", {16, 24, 32}},
  };
  return all;
}

// What Metal recommends by default: two thirds up to 36 GB, three quarters from there on.
uint64_t recommended(uint64_t gigabytes) {
  return gigabytes <= 36 ? gigabytes * kGiB / 3 * 2 : gigabytes * kGiB / 4 * 3;
}

DeviceFacts metal_facts(const std::string& chip, uint64_t gigabytes) {
  return {{"device_name", chip},
          {"architecture", std::string("applegpu_g")},
          {"memory_size", size_t{gigabytes * kGiB}},
          {"max_recommended_working_set_size", size_t{recommended(gigabytes)}},
          {"max_buffer_length", size_t{recommended(gigabytes)}}};
}

// A system that holds 2 GiB and an eighth; half of the rest is kept for reuse.
MacPages pages_of(uint64_t gigabytes) {
  const uint64_t rest = gigabytes * kGiB - 2 * kGiB - gigabytes * kGiB / 8;
  return {.page_bytes = kPage,
          .free = rest / 2 / kPage,
          .inactive = rest / 4 / kPage,
          .purgeable = rest / 4 / kPage};
}

template <typename Body>
void for_every_mac(const Body& body) {
  for (const Mac& mac : macs())
    for (const uint64_t gigabytes : mac.gigabytes) {
      SCOPED_TRACE(text(mac.chip, ", ", gigabytes, " GB"));
      body(mac.chip, gigabytes);
    }
}

TEST(Mac, MetalIsDescribedByItsNameAndWhatItRecommends) {
  for_every_mac([](const std::string& chip, uint64_t gigabytes) {
    const SystemMemory memory = memory_of_mac(gigabytes * kGiB, pages_of(gigabytes));
    const DeviceInfo info =
        describe_device(mx::Device(mx::Device::gpu), true, metal_facts(chip, gigabytes), memory);
    EXPECT_EQ(info.backend, "metal");
    EXPECT_EQ(info.name, chip);
    EXPECT_EQ(info.total_memory, gigabytes * kGiB);
    EXPECT_EQ(info.available_memory, memory.available);
    EXPECT_EQ(info.working_set, recommended(gigabytes));
  });
}

TEST(Mac, TheProcessorMayUseAllMemory) {
  const DeviceInfo info =
      describe_device(mx::Device(mx::Device::cpu), true, metal_facts("Apple M3 Max", 64),
                      {.total = 64 * kGiB, .available = 50 * kGiB});
  EXPECT_EQ(info.backend, "cpu");
  EXPECT_EQ(info.name, "Apple M3 Max");
  EXPECT_EQ(info.total_memory, 64 * kGiB);
  EXPECT_EQ(info.available_memory, 50 * kGiB);
  EXPECT_EQ(info.working_set, 64 * kGiB);
}

TEST(Mac, AGpuThatSaysNothingMayUseAllMemory) {
  const DeviceInfo info = describe_device(mx::Device(mx::Device::gpu), true, {},
                                          {.total = 16 * kGiB, .available = 9 * kGiB});
  EXPECT_EQ(info.name, "metal");
  EXPECT_EQ(info.working_set, 16 * kGiB);
}

TEST(Mac, AnNvidiaGpuHasMemoryOfItsOwn) {
  const DeviceFacts facts{{"device_name", std::string("NVIDIA H100")},
                          {"total_memory", size_t{80 * kGiB}},
                          {"free_memory", size_t{79 * kGiB}}};
  const DeviceInfo info = describe_device(mx::Device(mx::Device::gpu), false, facts,
                                          {.total = 512 * kGiB, .available = 400 * kGiB});
  EXPECT_EQ(info.backend, "cuda");
  EXPECT_EQ(info.total_memory, 80 * kGiB);
  EXPECT_EQ(info.available_memory, 79 * kGiB);
  EXPECT_EQ(info.working_set, 80 * kGiB);
}

TEST(Mac, PagesThatAreGivenToWhoeverAsksAreAvailable) {
  const MacPages pages{.page_bytes = kPage, .free = 100, .inactive = 20, .purgeable = 3};
  EXPECT_EQ(memory_of_mac(8 * kGiB, pages).available, 123 * kPage);
  EXPECT_EQ(memory_of_mac(8 * kGiB, pages).total, 8 * kGiB);
  // Purgeable pages may be counted as inactive too: never more than there is.
  const uint64_t all = 8 * kGiB / kPage;
  const MacPages twice{.page_bytes = kPage, .free = 0, .inactive = all, .purgeable = all};
  EXPECT_EQ(memory_of_mac(8 * kGiB, twice).available, 8 * kGiB);
  // 512 GB in pages of 4 KB do not fit into 32 bits.
  const MacPages small{
      .page_bytes = 4096, .free = 512 * kGiB / 4096, .inactive = 0, .purgeable = 0};
  EXPECT_EQ(memory_of_mac(512 * kGiB, small).available, 512 * kGiB);
}

TEST(Mac, LevelsOfPressureAreThoseOfDispatch) {
  EXPECT_EQ(pressure_of_level(0), MemoryPressure::kNormal);  // not known yet
  EXPECT_EQ(pressure_of_level(1), MemoryPressure::kNormal);
  EXPECT_EQ(pressure_of_level(2), MemoryPressure::kWarning);
  EXPECT_EQ(pressure_of_level(4), MemoryPressure::kCritical);
}

TEST(Mac, OnlyMetalWiresMemory) {
  const mx::Device cpu(mx::Device::cpu), gpu(mx::Device::gpu);
  EXPECT_TRUE(can_wire(gpu, true));
  EXPECT_FALSE(can_wire(gpu, false));
  EXPECT_FALSE(can_wire(cpu, true));
  EXPECT_FALSE(can_wire(cpu, false));
}

// From what macOS and Metal say to the limits that MLX gets, with SmolLM2-135M.
TEST(Mac, EveryMacHasAPlanForTheDefaultModel) {
  const CacheShape cache{.block_bytes = uint64_t{2} * 30 * 3 * 64 * 2 * 16,
                         .block_size = 16,
                         .max_model_len = 8192,
                         .shortens = false};
  for_every_mac([&](const std::string& chip, uint64_t gigabytes) {
    const DeviceInfo info =
        describe_device(mx::Device(mx::Device::gpu), true, metal_facts(chip, gigabytes),
                        memory_of_mac(gigabytes * kGiB, pages_of(gigabytes)));
    const MemoryFacts facts{.total = info.total_memory,
                            .available = info.available_memory,
                            .working_set = info.working_set,
                            .model = 257 * kMiB,
                            .activations = 300 * kMiB};
    for (const bool paged : {false, true}) {
      const MemoryPlan plan = plan_memory(facts, cache, {.paged = paged});
      EXPECT_GE(plan.kv_cache, cache.block_bytes * 512);  // a whole sequence
      EXPECT_LE(plan.memory_limit, std::min(info.available_memory, info.working_set));
      EXPECT_LT(plan.wired_limit, info.working_set);
    }
  });
}

}  // namespace
}  // namespace vllm_metal
