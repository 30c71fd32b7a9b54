// SPDX-License-Identifier: Apache-2.0
#include "cache/prefix_cache.h"

#include <gmock/gmock.h>

#include <map>
#include <numeric>
#include <random>
#include <stdexcept>

#include "kernels/kv_write.h"
#include "support/error_of.h"

namespace vllm_metal {
namespace {

constexpr int kBlock = 4, kBlocks = 24;

// Both caches, with tokens whose keys tell request, position and layer.
class PrefixCacheTest : public testing::TestWithParam<mx::Dtype> {
 protected:
  // Room for `count` more tokens of a request, and whether they are written.
  void append(RequestKey key, int32_t count, bool written = true) {
    const int32_t begin = lengths_[key], end = begin + count;
    cache_.reserve(key, end);
    lengths_[key] = end;
    if (!written) return;
    std::vector<int32_t> rows(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), cache_.first_row(key) + begin);
    const BatchLayout layout({0, count}, {end}, rows, {cache_.first_row(key)}, 0);
    for (int layer = 0; layer < spec_.num_layers; ++layer) {
      const mx::array keys = tokens(key, begin, end, layer);
      KVView view = cache_.view(layer, layout);
      kv_write(view, keys, mx::negative(keys));
    }
  }

  // [end - begin, num_kv_heads, head_dim]; small integers, which every dtype has
  mx::array tokens(RequestKey key, int32_t begin, int32_t end, int layer) const {
    std::vector<float> values;
    for (int32_t position = begin; position < end; ++position)
      for (int i = 0; i < spec_.num_kv_heads * spec_.head_dim; ++i)
        values.push_back(static_cast<float>((key * 31 + static_cast<uint64_t>(position) * 7 +
                                             static_cast<uint64_t>(layer * 3 + i)) %
                                            251));
    return mx::astype(
        mx::array(values.begin(), {end - begin, spec_.num_kv_heads, spec_.head_dim}, mx::float32),
        spec_.dtype);
  }

  void save(const std::vector<CachedBlocks>& blocks) {
    prefix_cache_.save(cache_, blocks);
    mx::async_eval(prefix_cache_.arrays());
  }

  // Whether tokens [0, end) of `key` are those of `source`, bit by bit.
  void check(RequestKey key, RequestKey source, int32_t end) {
    const BatchLayout any({0, 1}, {1}, {0}, {0}, 0);
    const int32_t row = cache_.first_row(key);
    const auto rows_of = [&](const mx::array& slab) {
      return mx::slice(slab, {row, 0, 0}, {row + end, slab.shape(1), slab.shape(2)});
    };
    for (int layer = 0; layer < spec_.num_layers; ++layer) {
      const KVView view = cache_.view(layer, any);
      const mx::array expected = tokens(source, 0, end, layer);
      EXPECT_TRUE(mx::array_equal(rows_of(view.keys), expected).item<bool>()) << key;
      EXPECT_TRUE(mx::array_equal(rows_of(view.values), mx::negative(expected)).item<bool>());
    }
  }

  KVCacheSpec spec_{.num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .dtype = GetParam()};
  ContiguousKVCache cache_{spec_, 4096, kBlock};
  PrefixCache prefix_cache_{spec_, kBlocks, kBlock};
  std::map<RequestKey, int32_t> lengths_;
};

INSTANTIATE_TEST_SUITE_P(Dtypes, PrefixCacheTest,
                         testing::Values(mx::float32, mx::float16, mx::bfloat16));

TEST_P(PrefixCacheTest, TokensComeBackAsTheyWere) {
  append(1, 17);
  save({{1, 0, {3, 4, 5, 6}}});
  append(2, 20, false);
  prefix_cache_.load(cache_, {{2, 0, {3, 4, 5, 6}}});
  check(2, 1, 16);
}

TEST_P(PrefixCacheTest, BlocksMayLieAnywhereAndBelongToSeveralRequests) {
  append(1, 12);
  append(2, 9);
  save({{1, 0, {20, 7, 0}}, {2, 0, {8, 23}}});
  append(3, 12, false);
  append(4, 30, false);
  append(5, 4, false);
  prefix_cache_.load(cache_, {{3, 0, {20, 7, 0}}, {4, 0, {8, 23}}, {5, 0, {20}}});
  check(3, 1, 12);
  check(4, 2, 8);
  check(5, 1, 4);
  check(1, 1, 12);
}

TEST_P(PrefixCacheTest, LaterBlocksAreSavedLater) {
  append(1, 6);
  save({{1, 0, {0}}});
  append(1, 7);
  save({{1, 1, {9, 2}}});
  append(2, 12, false);
  prefix_cache_.load(cache_, {{2, 0, {0, 9, 2}}});
  check(2, 1, 12);
}

TEST_P(PrefixCacheTest, RowsAreUsedAgainWhileTheyAreBeingSaved) {
  std::mt19937 random(3);
  std::map<int32_t, std::pair<RequestKey, int32_t>> saved;  // first block -> whose, how many tokens
  for (RequestKey key = 1; key < 80; ++key) {
    const auto num_blocks = static_cast<int32_t>(1 + random() % 4);
    const auto first = static_cast<int32_t>(random() % 6) * 4;
    append(key, num_blocks * kBlock + static_cast<int32_t>(random() % 4));
    std::vector<int32_t> blocks(static_cast<size_t>(num_blocks));
    std::iota(blocks.begin(), blocks.end(), first);
    save({{key, 0, blocks}});
    saved[first] = {key, num_blocks * kBlock};
    cache_.release(key);  // and its rows go to the next
    const auto& [source, tokens] = saved.at(first);
    const RequestKey reader = 1000 + key;
    append(reader, tokens, false);
    prefix_cache_.load(cache_, {{reader, 0, blocks}});
    if (key % 16 == 0) check(reader, source, tokens);
    if (key % 3 != 0) cache_.release(reader);
  }
}

TEST_P(PrefixCacheTest, MemoryIsTakenAtTheFirstSaveAndGivenBack) {
  mx::synchronize();
  const size_t before = mx::get_active_memory();
  EXPECT_EQ(prefix_cache_.nbytes(), 0u);
  append(1, 4);
  save({{1, 0, {0}}});
  EXPECT_EQ(prefix_cache_.nbytes(), kBlocks * kBlock * spec_.bytes_per_token());
  prefix_cache_.clear();
  cache_.clear();
  mx::synchronize();
  EXPECT_EQ(prefix_cache_.nbytes(), 0u);
  EXPECT_LE(mx::get_active_memory(), before + 4096);
}

TEST_P(PrefixCacheTest, RefusesWhatThereIsNot) {
  const auto text_of = [&](const CachedBlocks& blocks) {
    return test::error_of([&] { prefix_cache_.save(cache_, {blocks}); });
  };
  append(1, 7);
  EXPECT_THAT(text_of({1, 0, {0, 1}}), testing::HasSubstr("tokens 0 to 8"));
  EXPECT_THAT(text_of({1, 0, {kBlocks}}), testing::HasSubstr("from 0 to 23 but is 24"));
  EXPECT_THAT(text_of({9, 0, {0}}), testing::HasSubstr("holds 0"));
  EXPECT_THROW(prefix_cache_.load(cache_, {{1, 0, {0}}}), std::invalid_argument);
  EXPECT_THROW(PrefixCache(spec_, 0, kBlock), std::invalid_argument);
  EXPECT_THROW(PrefixCache(spec_, int64_t{1} << 40, kBlock), std::invalid_argument);
  EXPECT_THROW(PrefixCache(spec_, 1, 0), std::invalid_argument);
}

}  // namespace
}  // namespace vllm_metal
