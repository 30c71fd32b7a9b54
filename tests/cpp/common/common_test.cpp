// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <fstream>
#include <string>
#include <vector>

#include "common/log.h"
#include "common/mlx_buffer.h"
#include "common/text.h"
#include "common/version.h"

namespace vllm_metal {
namespace {

TEST(Log, GoesToTheSinkUntilItIsRemoved) {
  std::vector<std::pair<LogLevel, std::string>> messages;
  set_log_sink(
      [&](LogLevel level, const std::string& message) { messages.emplace_back(level, message); });
  log(LogLevel::kWarning, "one");
  set_log_sink({});
  log(LogLevel::kInfo, "two");
  EXPECT_THAT(messages, testing::ElementsAre(testing::Pair(LogLevel::kWarning, "one")));
}

TEST(Text, ConcatenatesAndJoins) {
  EXPECT_EQ(text("a", 1, 'c', 2.5), "a1c2.5");
  EXPECT_EQ(join(std::vector<int>{1, 2, 3}), "1, 2, 3");
  EXPECT_EQ(join(std::vector<int>{}), "");
}

TEST(Version, IsTheOneOfTheVersionFile) {
  std::ifstream file(VLLM_METAL_SOURCE_DIR "/VERSION");
  std::string expected;
  file >> expected;
  EXPECT_EQ(version(), expected);
}

TEST(MlxBuffer, UninitializedMemoryIsOwnedAndWritable) {
  mx::array array = uninitialized({2, 3}, mx::float32);
  for (int i = 0; i < 6; ++i) array.data<float>()[i] = static_cast<float>(i);
  EXPECT_EQ(mx::sum(array).item<float>(), 15.0f);
  EXPECT_EQ(uninitialized({0, 4}, mx::float16).size(), 0u);
}

}  // namespace
}  // namespace vllm_metal
