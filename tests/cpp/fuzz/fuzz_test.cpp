// SPDX-License-Identifier: Apache-2.0
// The fuzzers' entries on seeded mutations of their corpus. VLLM_METAL_FUZZ_SECONDS lets each go on
// for so many seconds, from the same seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "../../fuzz/mutator.h"
#include "../../fuzz/targets.h"

namespace vllm_metal {
namespace {

struct FuzzTarget {
  std::string name;
  bool (*run)(std::span<const std::byte>);
  int iterations;
};

std::chrono::seconds seconds_asked_for() {
  const char* value = std::getenv("VLLM_METAL_FUZZ_SECONDS");
  return std::chrono::seconds(value ? std::strtol(value, nullptr, 10) : 0);
}

class FuzzTest : public ::testing::TestWithParam<FuzzTarget> {};

// The targets abort or throw when a parser breaks its promise.
TEST_P(FuzzTest, SurvivesMutatedFiles) {
  const std::vector<Bytes> corpus = read_corpus(std::filesystem::path(VLLM_METAL_SOURCE_DIR) /
                                                "tests/fuzz/corpus" / GetParam().name);
  EXPECT_GE(std::count_if(corpus.begin(), corpus.end(), GetParam().run), 4);
  Mutator mutator(20240229);
  const auto end = std::chrono::steady_clock::now() + seconds_asked_for();
  int accepted = 0;
  for (int i = 0; i < GetParam().iterations || std::chrono::steady_clock::now() < end; ++i) {
    const Bytes bytes = mutator.mutant(corpus);
    ASSERT_NO_THROW(accepted += GetParam().run(bytes)) << "iteration " << i;
  }
  // Else the mutations are too wild to get behind the first checks.
  EXPECT_GT(accepted, GetParam().iterations / 1000);
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzTest,
                         ::testing::Values(FuzzTarget{"json", &fuzz_json, 20000},
                                           FuzzTarget{"safetensors", &fuzz_safetensors, 20000},
                                           FuzzTarget{"index", &fuzz_index, 20000},
                                           FuzzTarget{"config", &fuzz_config, 20000},
                                           FuzzTarget{"gguf", &fuzz_gguf, 20000},
                                           FuzzTarget{"import", &fuzz_import, 2000}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace vllm_metal
