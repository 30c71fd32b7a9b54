// SPDX-License-Identifier: Apache-2.0
// The cache against a model of it: every token's key must be found where it was written, whatever
// grew, moved, shrank or was packed in between.
#include "cache/contiguous_kv_cache.h"

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <stdexcept>

#include "kernels/kv_write.h"

namespace vllm_metal {
namespace {

constexpr KVCacheSpec kSpec{
    .num_layers = 2, .num_kv_heads = 1, .head_dim = 4, .dtype = mx::float32};

// Writes tokens whose keys are a function of request, position and layer, and reads them back.
class Checker {
 public:
  Checker(int64_t max_tokens, int block_size) : cache(kSpec, max_tokens, block_size) {}

  void append(uint64_t key, int32_t count) {
    const int32_t begin = lengths[key], end = begin + count;
    cache.reserve(key, end);
    std::vector<int32_t> slots;
    for (int32_t position = begin; position < end; ++position)
      slots.push_back(cache.first_row(key) + position);
    const BatchLayout layout({0, count}, {end}, slots, {cache.first_row(key)}, 0);
    for (int layer = 0; layer < kSpec.num_layers; ++layer) {
      std::vector<float> keys;
      for (int32_t position = begin; position < end; ++position)
        keys.insert(keys.end(), 4, expected(key, position, layer));
      const mx::array array(keys.begin(), {count, 1, 4}, mx::float32);
      KVView view = cache.view(layer, layout);
      kv_write(view, array, mx::negative(array));
    }
    lengths[key] = end;
  }

  void release(uint64_t key) {
    cache.release(key);
    lengths.erase(key);
  }

  void check() {
    const BatchLayout any({0, 1}, {1}, {0}, {0}, 0);
    for (int layer = 0; layer < kSpec.num_layers; ++layer) {
      KVView view = cache.view(layer, any);
      mx::eval(view.keys, view.values);
      for (const auto& [key, length] : lengths)
        for (int32_t position = 0; position < length; ++position) {
          const size_t at = static_cast<size_t>(cache.first_row(key) + position) * 4;
          ASSERT_EQ(view.keys.data<float>()[at], expected(key, position, layer))
              << key << " " << position;
          ASSERT_EQ(view.values.data<float>()[at + 3], -expected(key, position, layer));
        }
    }
  }

  static float expected(uint64_t key, int32_t position, int layer) {
    return static_cast<float>(key) * 100000 + static_cast<float>(position) * 2 +
           static_cast<float>(layer);
  }

  ContiguousKVCache cache;
  std::map<uint64_t, int32_t> lengths;
};

TEST(ContiguousKVCache, KeepsTokensWhileRequestsGrowAndInterleave) {
  Checker checker(10000, 16);
  for (int step = 0; step < 40; ++step)
    for (uint64_t key = 1; key <= 4; ++key) checker.append(key, step % 7 == 0 ? 100 : 1);
  checker.check();
}

TEST(ContiguousKVCache, HoldsWhatTheSchedulerCountsUpToTheLastBlock) {
  constexpr int kBlock = 16, kBlocks = 40;
  Checker checker(kBlock * kBlocks, kBlock);
  // 40 requests of one block each fill it; one more block does not fit.
  for (uint64_t key = 0; key < kBlocks; ++key) checker.append(key, 1);
  EXPECT_THROW(checker.cache.reserve(99, 1), std::runtime_error);
  for (int step = 1; step < kBlock; ++step)
    for (uint64_t key = 0; key < kBlocks; ++key) checker.append(key, 1);
  checker.check();
  EXPECT_EQ(checker.cache.num_rows(), kBlock * kBlocks);
}

// Ranges that were packed have room for no whole number of blocks; packed again they need more.
TEST(ContiguousKVCache, APromptComesWhileOthersGenerate) {
  Checker checker(36000, 16);
  for (const auto& [prompt, generated] : {std::pair{51, 83}, {42, 69}, {46, 130}}) {
    checker.append(checker.lengths.size(), prompt);
    for (int step = 0; step < generated; ++step)
      for (const auto& [key, length] : std::map(checker.lengths)) checker.append(key, 1);
  }
  checker.append(3, 2045);
  checker.check();
}

class ContiguousKVCacheOfBlocks : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Sizes, ContiguousKVCacheOfBlocks,
                         testing::Values(1, 7, 8, 16, 64, 128, 300, 512, 1024),
                         testing::PrintToStringParamName());

TEST_P(ContiguousKVCacheOfBlocks, RandomTrafficAtTheLimit) {
  const int kBlock = GetParam(), kMaxTokens = 1200 + 6 * kBlock;
  Checker checker(kMaxTokens, kBlock);
  std::mt19937 random(7);
  uint64_t next_key = 0;
  for (int step = 0; step < 600; ++step) {
    int64_t used = 0;
    for (const auto& [key, length] : checker.lengths)
      used += (length + kBlock - 1) / kBlock * kBlock;
    const int action = static_cast<int>(random() % 10);
    if (action == 0 && !checker.lengths.empty()) {
      checker.release(std::next(checker.lengths.begin(), random() % checker.lengths.size())->first);
    } else if (action <= 2 && used + 300 + kBlock < kMaxTokens) {
      checker.append(next_key++, 1 + static_cast<int32_t>(random() % 300));
    } else {
      for (const auto& [key, length] : std::map(checker.lengths))
        if (length % kBlock != 0 || used + kBlock <= kMaxTokens) {
          if (length % kBlock == 0) used += kBlock;
          checker.append(key, 1);
        }
    }
    if (step % 20 == 0) checker.check();
    ASSERT_LE(checker.cache.num_rows(), kMaxTokens);
  }
  checker.check();
}

TEST(ContiguousKVCache, ReturnsItsMemory) {
  mx::synchronize();
  const size_t before = mx::get_active_memory();
  {
    Checker checker(1 << 20, 16);
    EXPECT_EQ(checker.cache.nbytes(), 0u);
    checker.append(1, 20000);
    checker.append(2, 20000);
    checker.check();
    EXPECT_GE(checker.cache.nbytes(), 40000 * kSpec.bytes_per_token());
    checker.release(1);
    checker.append(2, 1);
    checker.check();
    const size_t both = checker.cache.nbytes();
    checker.release(2);
    EXPECT_EQ(checker.cache.nbytes(), 0u);
    EXPECT_GT(both, 0u);
    mx::synchronize();
    EXPECT_LE(mx::get_active_memory(), before + 4096);
  }
}

TEST(ContiguousKVCache, ShrinksWhenMostRowsAreFree) {
  Checker checker(1 << 20, 16);
  for (uint64_t key = 0; key < 10; ++key) checker.append(key, 4000);
  const int64_t full = checker.cache.num_rows();
  for (uint64_t key = 0; key < 9; ++key) checker.release(key);
  EXPECT_LT(checker.cache.num_rows(), full / 2);
  checker.check();
}

TEST(ContiguousKVCache, PointersStayWhileNothingGrows) {
  Checker checker(4096, 16);
  checker.append(1, 10);
  checker.check();
  const BatchLayout any({0, 1}, {1}, {0}, {0}, 0);
  KVView view = checker.cache.view(0, any);
  const void* before = view.keys.data<float>();
  for (int step = 0; step < 100; ++step) {
    checker.append(1, 1);
    mx::async_eval(checker.cache.view(0, any).keys,
                   checker.cache.view(1, any).values);  // the next step starts before this one ends
  }
  checker.check();
  EXPECT_EQ(checker.cache.view(0, any).keys.data<float>(), before);
}

TEST(ContiguousKVCache, RefusesImpossibleSizes) {
  EXPECT_THROW(ContiguousKVCache(kSpec, 0, 16), std::invalid_argument);
  EXPECT_THROW(ContiguousKVCache(kSpec, int64_t{1} << 40, 16), std::invalid_argument);
  EXPECT_THROW(ContiguousKVCache(kSpec, 100, 0), std::invalid_argument);
}

}  // namespace
}  // namespace vllm_metal
