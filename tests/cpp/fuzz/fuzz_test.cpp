// SPDX-License-Identifier: Apache-2.0
// The fuzzers' entries on seeded mutations of their corpus, for machines without libFuzzer.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../../fuzz/targets.h"
#include "temporary_directory.h"

namespace vllm_metal {
namespace {

using Bytes = std::vector<std::byte>;

struct FuzzTarget {
  std::string name;
  bool (*run)(std::span<const std::byte>);
  int iterations;
};

std::vector<Bytes> read_corpus(const std::string& name) {
  auto folder = std::filesystem::path(__FILE__).parent_path() / "../../fuzz/corpus" / name;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());  // so that a seed gives the same run everywhere
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    const std::string content = read_file(path);
    const auto bytes = std::as_bytes(std::span(content));
    corpus.emplace_back(bytes.begin(), bytes.end());
  }
  return corpus;
}

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  size_t below(size_t bound) { return bound == 0 ? 0 : random_() % bound; }

  // A few edits of the kinds that upset parsers.
  void mutate(Bytes& bytes) {
    for (size_t edits = 1 + below(4); edits > 0; --edits) edit(bytes);
  }

 private:
  void edit(Bytes& bytes) {
    const size_t at = below(bytes.size());
    switch (below(6)) {
      case 0:
        if (!bytes.empty()) bytes[at] ^= static_cast<std::byte>(1 << below(8));
        break;
      case 1:
        bytes.resize(at);
        break;
      case 2:
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), random_byte());
        break;
      case 3:
        overwrite_number(bytes, at);
        break;
      case 4:
        repeat(bytes, at);
        break;
      default:
        bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at),
                    bytes.begin() + static_cast<ptrdiff_t>(at + below(bytes.size() - at)));
    }
  }

  std::byte random_byte() { return static_cast<std::byte>(random_() & 255); }

  // Counts, lengths and offsets at the edges of their range.
  void overwrite_number(Bytes& bytes, size_t at) {
    static constexpr uint64_t kEdges[] = {
        0,         1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, UINT64_MAX, INT64_MAX, UINT64_MAX - 31,
        1ull << 33};
    const uint64_t value = kEdges[below(std::size(kEdges))];
    const size_t width = below(2) ? 8 : 4;
    for (size_t i = 0; i < width && at + i < bytes.size(); ++i) {
      bytes[at + i] = static_cast<std::byte>(value >> (8 * i));
    }
  }

  void repeat(Bytes& bytes, size_t at) {
    const size_t length = below(std::min<size_t>(bytes.size() - at, 256));
    const Bytes piece(bytes.begin() + static_cast<ptrdiff_t>(at),
                      bytes.begin() + static_cast<ptrdiff_t>(at + length));
    bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), piece.begin(), piece.end());
  }

  std::mt19937 random_;
};

class FuzzTest : public ::testing::TestWithParam<FuzzTarget> {};

// The targets abort or throw when a parser breaks its promise.
TEST_P(FuzzTest, SurvivesMutatedFiles) {
  const std::vector<Bytes> corpus = read_corpus(GetParam().name);
  ASSERT_FALSE(corpus.empty());
  EXPECT_GE(std::count_if(corpus.begin(), corpus.end(), GetParam().run), 4);
  Mutator mutator(20240229);
  for (int i = 0; i < GetParam().iterations; ++i) {
    Bytes bytes = corpus[mutator.below(corpus.size())];
    mutator.mutate(bytes);
    ASSERT_NO_THROW(GetParam().run(bytes)) << "iteration " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzTest,
                         ::testing::Values(FuzzTarget{"json", &fuzz_json, 20000},
                                           FuzzTarget{"safetensors", &fuzz_safetensors, 20000},
                                           FuzzTarget{"gguf", &fuzz_gguf, 20000}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace vllm_metal
