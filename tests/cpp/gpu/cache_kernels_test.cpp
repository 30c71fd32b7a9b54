// SPDX-License-Identifier: Apache-2.0
// The text of kv_write and copy_blocks in the harness, with races and bounds looked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "gpu/kernel_sources.h"

namespace gpu_harness {
namespace {

namespace gpu = vllm_metal::gpu;

// Tokens whose element (token, head, element) lies at the sum of its strides; all others are -1.
struct Tokens {
  std::vector<int64_t> strides;
  std::vector<float> elements;
};

float value_of(int token, int head, int element) {
  return static_cast<float>(token * 10000 + head * 300 + element);
}

Tokens make_tokens(int tokens, int heads, int head_dim, std::vector<int64_t> strides) {
  Tokens result{strides, {}};
  result.elements.assign(
      (tokens - 1) * strides[0] + (heads - 1) * strides[1] + (head_dim - 1) * strides[2] + 1,
      -1.0f);
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < heads; ++h) {
      for (int e = 0; e < head_dim; ++e)
        result.elements[t * strides[0] + h * strides[1] + e * strides[2]] = value_of(t, h, e);
    }
  }
  return result;
}

// Writes the same tokens, laid out in two ways, as keys and as values, and returns both caches.
std::pair<std::vector<float>, std::vector<float>> write(const Tokens& keys, const Tokens& values,
                                                        const std::vector<int>& slots, int num_rows,
                                                        int heads, int head_dim) {
  const int64_t row = int64_t{heads} * head_dim;
  gpu::KVWriteArguments arguments{};
  std::copy_n(keys.strides.begin(), 3, arguments.key_strides);
  std::copy_n(values.strides.begin(), 3, arguments.value_strides);
  arguments.cache_row_stride = row;
  arguments.num_kv_heads = heads;
  arguments.head_dim = head_dim;
  DeviceBuffer<float> key_input("keys", keys.elements), value_input("values", values.elements);
  DeviceBuffer<int> slot_input("slot_mapping", slots);
  DeviceBuffer<float> key_cache("key_cache", std::vector<float>(num_rows * row, -2.0f));
  DeviceBuffer<float> value_cache("value_cache", std::vector<float>(num_rows * row, -2.0f));
  const auto k = key_input.input(), v = value_input.input();
  const auto s = slot_input.input();
  const auto kc = key_cache.output(), vc = value_cache.output();
  launch({static_cast<unsigned>(slots.size()), 1, gpu::kWriteThreads}, 3,
         [&] { kernels::kv_write<float>(k, v, s, kc, vc, arguments); });
  return {key_cache.values(), value_cache.values()};
}

TEST(CacheKernels, WritesTokensOfAnyStridesToTheirSlotsOnly) {
  constexpr int kRows = 9;
  const std::vector<int> slots{7, 0, -1, 3, 8};  // the third token is not written
  const int tokens = static_cast<int>(slots.size());
  for (const auto& [heads, head_dim] : {std::pair{1, 1}, {3, 64}, {2, 80}, {5, 129}}) {
    const int64_t d = head_dim, row = heads * d;
    const auto plain = make_tokens(tokens, heads, head_dim, {row, d, 1});
    const auto fused = make_tokens(tokens, heads, head_dim, {3 * row + 1, d + 2, 1});
    const auto reversed = make_tokens(tokens, heads, head_dim, {1, tokens, tokens * heads});
    std::vector<float> expected(kRows * row, -2.0f);
    for (int t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < row && slots[t] >= 0; ++i)
        expected[slots[t] * row + i] =
            value_of(t, static_cast<int>(i / d), static_cast<int>(i % d));
    }
    EXPECT_EQ(write(plain, fused, slots, kRows, heads, head_dim), std::pair(expected, expected));
    EXPECT_EQ(write(reversed, plain, slots, kRows, heads, head_dim), std::pair(expected, expected));
  }
}

TEST(CacheKernels, SlotsBeyondTheCacheOrGivenTwiceAreFound) {
  const auto tokens = make_tokens(2, 1, 8, {8, 8, 1});
  const auto error = [&](const std::vector<int>& slots) -> std::string {
    try {
      write(tokens, tokens, slots, 4, 1, 8);
    } catch (const KernelError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(error({0, 4}), testing::HasSubstr("write out of bounds of key_cache"));
  EXPECT_THAT(error({2, 2}), testing::HasSubstr("race: write after a write"));
}

template <typename Word>
std::vector<unsigned> words_after_copies(const std::vector<gpu::BlockPair>& pairs, int num_blocks,
                                         int words_per_block, bool values) {
  std::vector<Word> words(size_t(num_blocks) * words_per_block);
  auto* numbers = reinterpret_cast<unsigned short*>(words.data());
  const size_t count = words.size() * sizeof(Word) / sizeof(unsigned short);
  for (size_t i = 0; i < count; ++i) numbers[i] = static_cast<unsigned short>(i * 7 + 1);
  DeviceBuffer<Word> keys("key_cache", words), others("value_cache", words);
  DeviceBuffer<gpu::BlockPair> list("pairs", pairs);
  const auto k = keys.output(), v = others.output();
  const auto p = list.input();
  const unsigned groups = (words_per_block + gpu::kCopyWordsPerGroup - 1) / gpu::kCopyWordsPerGroup;
  launch({groups, static_cast<unsigned>(pairs.size()), gpu::kCopyThreads}, 5,
         [&] { kernels::copy_blocks<Word>(k, v, p, {words_per_block}); });
  const auto& result = values ? others.values() : keys.values();
  const auto* copied = reinterpret_cast<const unsigned short*>(result.data());
  return std::vector<unsigned>(copied, copied + count);
}

TEST(CacheKernels, CopiesWholeBlocksAndNothingElse) {
  const std::vector<gpu::BlockPair> pairs{{1, 0}, {1, 5}, {4, 3}};
  for (int words : {1, 255, 1024, 1025, 2500}) {
    for (bool values : {false, true}) {
      SCOPED_TRACE(words);
      const auto check = [&](const std::vector<unsigned>& actual, size_t numbers_per_word) {
        const size_t block = words * numbers_per_word;
        std::vector<unsigned> expected(6 * block);
        const int sources[] = {1, 1, 2, 4, 4, 1};
        for (size_t i = 0; i < expected.size(); ++i)
          expected[i] = ((sources[i / block] * block + i % block) * 7 + 1) & 0xffff;
        EXPECT_EQ(actual, expected);
      };
      check(words_after_copies<unsigned short>(pairs, 6, words, values), 1);
      check(words_after_copies<uint4>(pairs, 6, words, values), 8);
    }
  }
}

}  // namespace
}  // namespace gpu_harness
