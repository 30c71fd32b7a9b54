// SPDX-License-Identifier: Apache-2.0
// The pool against a model of it: every token's key and value must be found where its request's
// table says, whatever else is written, copied, freed and handed out again.
#include "cache/paged_kv_cache.h"

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <stdexcept>
#include <utility>

#include "cache/contiguous_kv_cache.h"
#include "cache/paged_kv_cache_checker.h"
#include "common/mlx_buffer.h"
#include "common/text.h"
#include "kernels/kv_write.h"
#include "kernels/varlen_attention.h"
#include "support/error_of.h"

namespace vllm_metal {
namespace {

using namespace test;
using testing::ElementsAre;
using testing::HasSubstr;

class PagedKVCacheOfAnyBlockSize : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(BlockSizes, PagedKVCacheOfAnyBlockSize,
                         testing::ValuesIn(PagedKVCache::kBlockSizes),
                         testing::PrintToStringParamName());

TEST_P(PagedKVCacheOfAnyBlockSize, KeepsTokensWhileRequestsComeAndGo) {
  PagedChecker checker(60, GetParam());
  std::mt19937 random(7);
  RequestKey next_key = 0;
  for (int step = 0; step < 120; ++step) {
    More more;
    for (const auto& [key, length] : std::map(checker.lengths)) {
      if (random() % 12 == 0) {
        checker.release(key);
      } else if (random() % 4 != 0) {
        more.emplace_back(key, 1);
      }
    }
    const auto blocks = static_cast<int32_t>(1 + random() % 8);
    if (checker.tables.num_free() > static_cast<size_t>(blocks) + more.size())
      more.emplace_back(next_key++, blocks * GetParam() - static_cast<int32_t>(random() % 8));
    if (!more.empty()) checker.append(more);
    if (step % 10 == 0) checker.check();
  }
  checker.check();
}

// Softmax over the same rows, wherever they lie.
TEST_P(PagedKVCacheOfAnyBlockSize, AttentionSeesWhatItSeesInAContiguousCache) {
  const int num_heads = 4;
  PagedKVCache paged(kSpec, 80, GetParam());
  ContiguousKVCache contiguous(kSpec, 80 * GetParam(), GetParam());
  BlockTables<RequestKey> tables(80, GetParam());
  std::map<RequestKey, int32_t> lengths;
  mx::random::seed(5);
  for (const More& more : {More{{1, 100}}, More{{1, 1}, {2, 37}, {3, 1}},
                           More{{3, 140}, {1, 1}, {2, 20}}, More{{1, 1}, {2, 1}, {3, 1}}}) {
    for (const auto& [key, count] : more) tables.grow(key, lengths[key] += count);
    CacheStep step = step_of(more, lengths, tables);
    const int num_tokens = step.query_starts.back();
    const mx::Shape shape{num_tokens, kSpec.num_kv_heads, kSpec.head_dim};
    const mx::array keys = mx::random::normal(shape), values = mx::random::normal(shape),
                    queries = mx::random::normal({num_tokens, num_heads, kSpec.head_dim});
    const auto attend = [&](KVCache& cache) {
      const BatchLayout layout = cache.prepare(step);
      KVView view = cache.view(1, layout);
      kv_write(view, keys, values);
      mx::array output = varlen_attention(queries, view, {.scale = 0.25f});
      output.eval();
      return output;
    };
    mx::array difference = mx::max(mx::abs(mx::subtract(attend(paged), attend(contiguous))));
    EXPECT_LE(difference.item<float>(), 1e-6f);
  }
}

TEST_P(PagedKVCacheOfAnyBlockSize, CopiesBlocksOfAllLayersBeforeTheStepWrites) {
  const int size = GetParam();
  PagedChecker checker(8, size);
  checker.append({{1, 2 * size}});
  // Request 2 gets copies of both blocks and goes on after them; request 1 goes on, too.
  checker.tables.grow(2, 2 * size);
  const auto table = checker.tables.of(2);
  checker.lengths[2] = 2 * size;
  checker.append({{1, 1}, {2, 3}},
                 {{checker.tables.of(1)[0], table[0]}, {checker.tables.of(1)[1], table[1]}});
  for (int32_t position = 0; position < 2 * size; ++position)
    ASSERT_NO_FATAL_FAILURE(checker.check_token(checker.tables.of(2), position, 1));
  for (int32_t position = 2 * size; position < 2 * size + 3; ++position)
    ASSERT_NO_FATAL_FAILURE(checker.check_token(checker.tables.of(2), position, 2));
  checker.release(2);
  checker.check();
}

TEST(PagedKVCache, SaysWhereTokensLie) {
  PagedKVCache cache(kSpec, 12, 8);
  CacheStep step;
  step.keys = {1, 2};
  step.query_starts = {0, 3, 4};
  step.context_lens = {17, 5};
  step.block_tables = {{7, 2, 9, 0, 0}, {4, 99}};  // what lies past the tokens is not looked at
  const BatchLayout layout = cache.prepare(step);
  EXPECT_THAT(layout.query_starts, ElementsAre(0, 3, 4));
  EXPECT_THAT(layout.context_lens, ElementsAre(17, 5));
  EXPECT_THAT(layout.slot_mapping, ElementsAre(2 * 8 + 6, 2 * 8 + 7, 9 * 8, 4 * 8 + 4));
  EXPECT_THAT(layout.block_tables, ElementsAre(7, 2, 9, 4, 0, 0));
  EXPECT_EQ(layout.block_size, 8);
  EXPECT_EQ(layout.row(0, 9), 2 * 8 + 1);
}

TEST(PagedKVCache, RefusesSizesItIsNotMadeFor) {
  for (const int block_size : {-8, 0, 1, 4, 12, 24, 256})
    EXPECT_EQ(
        error_of([&] { PagedKVCache(kSpec, 10, block_size); }),
        text("[paged_kv_cache] block_size must be 8, 16, 32, 64 or 128 but is ", block_size, "."));
  for (const int64_t num_blocks : {int64_t{-1}, int64_t{1}, int64_t{1} << 40})
    EXPECT_EQ(
        error_of([&] { PagedKVCache(kSpec, num_blocks, 16); }),
        text("[paged_kv_cache] num_blocks must be from 2 to 134217727 but is ", num_blocks, "."));
}

TEST(PagedKVCache, RefusesTablesThatAreTooShortOrNameNoBlock) {
  PagedChecker checker(12, 16);
  checker.append({{1, 40}, {2, 20}});
  const CacheStep good = step_of({{1, 1}, {2, 1}}, checker.lengths, checker.tables);
  const auto refusal = [&](const std::vector<int32_t>& table) {
    CacheStep step = good;
    step.block_copies = {{checker.tables.of(1)[0], checker.tables.of(2)[0]}};  // must not be made
    step.block_tables[1] = table;
    EXPECT_THROW(checker.cache.prepare(step), std::invalid_argument);
    return error_of([&] { checker.cache.prepare(step); });
  };
  EXPECT_EQ(refusal({3}),
            "[paged_kv_cache] request 1 of the step has 20 tokens, 2 blocks, but a table of 1.");
  EXPECT_EQ(refusal({}),
            "[paged_kv_cache] request 1 of the step has 20 tokens, 2 blocks, but a table of 0.");
  for (const int32_t block : {0, -1, 12, 1 << 30})
    EXPECT_EQ(refusal({3, block}),
              text("[paged_kv_cache] request 1 of the step must have blocks from 1 to 11 but has ",
                   block, "."));
  checker.check();
  checker.append({{1, 1}, {2, 1}});
  checker.check();
}

TEST(PagedKVCache, GivesItsMemoryBackAndTakesItAgain) {
  mx::synchronize();
  const size_t before = memory_use().active;
  const size_t pool = 50 * 32 * kSpec.bytes_per_token();
  PagedChecker checker(50, 32);
  EXPECT_EQ(checker.cache.nbytes(), pool);
  EXPECT_GE(memory_use().active, before + pool);
  checker.append({{1, 200}});
  checker.release(1);
  EXPECT_EQ(checker.cache.nbytes(), pool);  // the pool is whole whoever lives
  checker.append({{1, 100}});
  checker.cache.clear();
  checker.tables.release(1);
  checker.lengths.clear();
  mx::synchronize();
  EXPECT_EQ(checker.cache.nbytes(), 0u);
  EXPECT_LE(memory_use().active, before + 4096);
  checker.append({{1, 300}, {2, 5}});  // requests of before are not known any more
  EXPECT_EQ(checker.cache.nbytes(), pool);
  checker.check();
}

TEST(PagedKVCache, MemoryAndPointersStayWithStepsInFlight) {
  PagedChecker checker(64, 16);
  checker.cache.check_invariants(false);  // which wait for each step
  checker.append({{1, 10}, {2, 300}});
  checker.check();
  const auto copies = checker.tables.grow(3, 32);
  const auto pointer = [&](int layer) {
    return static_cast<const void*>(checker.cache.view(layer, checker.any).keys.data<float>());
  };
  const std::vector<const void*> pointers{pointer(0), pointer(1)};
  mx::synchronize();
  const size_t before = memory_use().active;
  for (int step = 0; step < 150; ++step) {
    const BatchLayout layout = checker.append(
        {{1, 1}, {2, 1}}, {{checker.tables.of(1)[0], copies[static_cast<size_t>(step % 2)]}});
    for (int layer = 0; layer < kSpec.num_layers; ++layer) {
      const KVView view = checker.cache.view(layer, layout);
      mx::async_eval(view.keys, view.values);  // the next step starts before this one ends
    }
  }
  checker.check();
  EXPECT_EQ((std::vector<const void*>{pointer(0), pointer(1)}), pointers);
  mx::synchronize();
  EXPECT_LE(memory_use().active, before + 4096);
}

TEST(PagedKVCache, NoticesThatTheNullBlockWasWritten) {
  for (const bool in_values : {false, true}) {
    PagedChecker checker(8, 8);
    checker.append({{1, 4}});
    const BatchLayout null_block({0, 1}, {1}, {5}, {PagedKVCache::kNullBlock}, 8);
    KVView view = checker.cache.view(1, null_block);
    const mx::array zero = mx::zeros({1, 2, 16}), one = mx::ones({1, 2, 16});
    kv_write(view, in_values ? zero : one, in_values ? one : zero);
    EXPECT_THROW(checker.append({{1, 1}}), std::logic_error);
    EXPECT_EQ(error_of([&] { checker.append({{1, 1}}); }),
              "[paged_kv_cache] layer 1 was written in the null block.");
    checker.cache.check_invariants(true);  // starts anew
    EXPECT_NO_THROW(checker.append({{1, 1}}));
  }
}

TEST(PagedKVCache, ChecksOnlyWhenAsked) {
  PagedChecker checker(8, 8);
  checker.append({{1, 4}});
  CacheStep step = step_of({{1, 4}}, checker.lengths, checker.tables);
  step.keys = {2};  // writes where request 1 did
  EXPECT_THAT(error_of([&] { checker.cache.prepare(step); }),
              HasSubstr("where another request's token lies"));
  checker.cache.check_invariants(false);
  EXPECT_NO_THROW(checker.cache.prepare(step));
}

}  // namespace
}  // namespace vllm_metal
