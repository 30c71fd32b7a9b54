// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <filesystem>
#include <stdexcept>

#include "runner/model_runner.h"
#include "support/error_of.h"
#include "support/temp_dir.h"

namespace vllm_metal {
namespace {

using test::error_of;
using testing::HasSubstr;

TEST(ReadModelConfig, NamesTheFileThatCannotBe) {
  test::TempDir dir;
  const auto path = dir.path() / "config.json";
  const auto error = [&] { return error_of([&] { read_model_config(dir.path()); }); };
  EXPECT_THAT(error(), HasSubstr(path.string()));
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);  // opened plainly it would wait for a writer
  EXPECT_THAT(error(), HasSubstr(path.string()));
  std::filesystem::remove(path);
  dir.write("config.json", "{\"a\": ");
  EXPECT_THAT(error(), HasSubstr(path.string()));
  std::filesystem::resize_file(path, 200'000'000);  // sparse
  EXPECT_THAT(error(), HasSubstr("at most 100000000 are allowed"));
}

TEST(ReadModelConfig, ReadsIt) {
  test::TempDir dir;
  dir.write("config.json", R"({"model_type": "llama"})");
  EXPECT_EQ(read_model_config(dir.path()).at("model_type").as_string(), "llama");
}

}  // namespace
}  // namespace vllm_metal
