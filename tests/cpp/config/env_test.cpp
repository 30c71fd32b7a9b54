// SPDX-License-Identifier: Apache-2.0
#include "config/env.h"

#include <gmock/gmock.h>

#include <map>
#include <stdexcept>

namespace vllm_metal {
namespace {

Environment read(const std::map<std::string, std::string>& variables) {
  return Environment::read([&](const char* name) -> const char* {
    auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(Environment, DefaultsWhenNothingIsSet) {
  const Environment env = read({});
  EXPECT_TRUE(env.use_mlx);
  EXPECT_EQ(env.device, DeviceChoice::kGpuIfAvailable);
  EXPECT_EQ(env.block_size, 16);
  EXPECT_FALSE(env.block_size_is_set);
  EXPECT_FALSE(env.paged_attention);
  EXPECT_FALSE(env.debug);
  EXPECT_FALSE(env.memory_fraction);
}

TEST(Environment, ReadsTheMemoryFraction) {
  EXPECT_EQ(read({{"VLLM_METAL_MEMORY_FRACTION", "0.25"}}).memory_fraction, 0.25);
  EXPECT_EQ(read({{"VLLM_METAL_MEMORY_FRACTION", "1"}}).memory_fraction, 1.0);
  EXPECT_EQ(read({{"VLLM_METAL_MEMORY_FRACTION", "5e-1"}}).memory_fraction, 0.5);
  EXPECT_FALSE(read({{"VLLM_METAL_MEMORY_FRACTION", "auto"}}).memory_fraction);
}

TEST(Environment, ReadsValues) {
  const Environment env = read({{"VLLM_METAL_USE_MLX", "0"},
                                {"VLLM_MLX_DEVICE", "cpu"},
                                {"VLLM_METAL_BLOCK_SIZE", "32"},
                                {"VLLM_METAL_USE_PAGED_ATTENTION", "1"},
                                {"VLLM_METAL_DEBUG", "True"}});
  EXPECT_FALSE(env.use_mlx);
  EXPECT_EQ(env.device, DeviceChoice::kCpu);
  EXPECT_EQ(env.block_size, 32);
  EXPECT_TRUE(env.block_size_is_set);
  EXPECT_TRUE(env.paged_attention);
  EXPECT_TRUE(env.debug);
  EXPECT_EQ(read({{"VLLM_MLX_DEVICE", "gpu"}}).device, DeviceChoice::kGpu);
}

TEST(Environment, EmptyCountsAsUnset) {
  EXPECT_EQ(read({{"VLLM_METAL_BLOCK_SIZE", ""}}).block_size, 16);
}

TEST(Environment, RefusesByNameValueAndWhatIsAllowed) {
  const std::vector<std::tuple<std::string, std::string, std::string>> cases{
      {"VLLM_METAL_USE_MLX", "2", "0 or 1"},
      {"VLLM_MLX_DEVICE", "tpu", "gpu or cpu"},
      {"VLLM_METAL_BLOCK_SIZE", "0", "1 to 1024"},
      {"VLLM_METAL_BLOCK_SIZE", "16x", "1 to 1024"},
      {"VLLM_METAL_BLOCK_SIZE", "99999999999999", "1 to 1024"},
      {"VLLM_METAL_DEBUG", "maybe", "0 or 1"},
      {"VLLM_METAL_MEMORY_FRACTION", "0", "auto or a number in (0, 1]"},
      {"VLLM_METAL_MEMORY_FRACTION", "-0.5", "auto or a number in (0, 1]"},
      {"VLLM_METAL_MEMORY_FRACTION", "1.01", "auto or a number in (0, 1]"},
      {"VLLM_METAL_MEMORY_FRACTION", "0.5x", "auto or a number in (0, 1]"},
      {"VLLM_METAL_MEMORY_FRACTION", "0,5", "auto or a number in (0, 1]"},
      {"VLLM_METAL_MEMORY_FRACTION", "nan", "auto or a number in (0, 1]"},
      {"VLLM_METAL_MEMORY_FRACTION", "AUTO ", "auto or a number in (0, 1]"},
      {"VLLM_METAL_USE_PAGED_ATTENTION", "2", "0 or 1"},
      {"VLLM_USE_MODELSCOPE", "yes", "True or False"},
      {"VLLM_METAL_PREFIX_CACHE", "always", "0 or 1"},
      {"VLLM_METAL_PREFIX_CACHE_FRACTION", "0", "must be a number in (0, 1]"},
      {"VLLM_METAL_PREFIX_CACHE_FRACTION", "1.5", "must be a number in (0, 1]"},
      {"VLLM_METAL_PREFIX_CACHE_FRACTION", "auto", "must be a number in (0, 1]"},
  };
  for (const auto& [name, value, allowed] : cases) {
    try {
      read({{name, value}});
      ADD_FAILURE() << name << "=" << value << " was accepted";
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(),
                  testing::AllOf(testing::HasSubstr(name), testing::HasSubstr(allowed)));
    }
  }
}

TEST(Environment, ReadsThePrefixCache) {
  EXPECT_FALSE(read({}).prefix_cache);
  EXPECT_EQ(read({{"VLLM_METAL_PREFIX_CACHE", "1"}}).prefix_cache, true);
  EXPECT_EQ(read({{"VLLM_METAL_PREFIX_CACHE", "off"}}).prefix_cache, false);
  EXPECT_EQ(read({}).prefix_cache_fraction, 0.05);
  EXPECT_EQ(read({{"VLLM_METAL_PREFIX_CACHE_FRACTION", "1"}}).prefix_cache_fraction, 1.0);
  EXPECT_EQ(read({{"VLLM_METAL_PREFIX_CACHE_FRACTION", "0.2"}}).prefix_cache_fraction, 0.2);
}

TEST(Environment, DefaultsAreAccepted) {
  EXPECT_NO_THROW(read({{"VLLM_METAL_MEMORY_FRACTION", "auto"}, {"VLLM_USE_MODELSCOPE", "False"}}));
}

}  // namespace
}  // namespace vllm_metal
