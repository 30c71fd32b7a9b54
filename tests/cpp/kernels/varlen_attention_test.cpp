// SPDX-License-Identifier: Apache-2.0
#include "kernels/varlen_attention.h"

#include <stdexcept>

#include "kernels/attention_batch.h"
#include "kernels/table_cases.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

// Prefill chunks with and without history, decodes from the first token on, lengths on both sides
// of blocks and spans.
const std::vector<RequestShape> kMixedBatch{{57, 20}, {33, 33}, {1, 1},   {5, 1},
                                            {32, 1},  {64, 2},  {65, 1},  {700, 3},
                                            {513, 1}, {512, 1}, {1500, 1}};

class VarlenAttention : public KernelTestP {};
INSTANTIATE_KERNEL_TESTS(VarlenAttention);

TEST_P(VarlenAttention, MatchesReferenceForHeadCountsAndSizes) {
  for (const HeadShape& heads : std::vector<HeadShape>{{2, 2, 8},
                                                       {6, 2, 24},
                                                       {2, 2, 64},
                                                       {9, 3, 64},
                                                       {4, 1, 64},
                                                       {8, 1, 64},
                                                       {7, 1, 80},
                                                       {3, 1, 96},
                                                       {8, 2, 128},
                                                       {8, 1, 256},
                                                       {2, 2, 256}}) {
    const auto inputs = make_inputs(kMixedBatch, heads, dtype());
    const auto result = attend(inputs, place(kMixedBatch, 0));
    EXPECT_EQ(result.dtype(), dtype());
    SCOPED_TRACE(testing::Message()
                 << heads.num_heads << "/" << heads.num_kv_heads << " x " << heads.head_dim);
    ASSERT_NO_FATAL_FAILURE(expect_close(result, attention_reference(inputs)));
  }
}

TEST_P(VarlenAttention, AnyHeadSize) {
  const std::vector<RequestShape> requests{{40, 7}, {19, 1}};
  for (int head_dim : {1, 3, 20, 65, 72, 120, 264, 576}) {
    const auto inputs = make_inputs(requests, {4, 2, head_dim}, dtype());
    SCOPED_TRACE(head_dim);
    ASSERT_NO_FATAL_FAILURE(
        expect_close(attend(inputs, place(requests, 16)), attention_reference(inputs)));
  }
}

TEST_P(VarlenAttention, ManyQueryHeadsOfOneKeyHead) {
  const std::vector<RequestShape> requests{{90, 4}, {33, 1}};
  const auto inputs = make_inputs(requests, {71, 1, 16}, dtype());
  expect_close(attend(inputs, place(requests, 0)), attention_reference(inputs));
}

TEST_P(VarlenAttention, LongPrefillCrossesTilesAndSpans) {
  const std::vector<RequestShape> requests{{1100, 150}, {530, 530}};
  const auto inputs = make_inputs(requests, {3, 1, 32}, dtype());
  expect_close(attend(inputs, place(requests, 0)), attention_reference(inputs));
}

TEST_P(VarlenAttention, PagedEqualsContiguous) {
  const auto inputs = make_inputs(kMixedBatch, {9, 3, 64}, dtype());
  const auto contiguous = attend(inputs, place(kMixedBatch, 0));
  for (int block_size : {1, 8, 16, 32, 48, 128})
    expect_equal(attend(inputs, place(kMixedBatch, block_size, block_size)), contiguous);
}

TEST_P(VarlenAttention, BatchedEqualsAlone) {
  const auto inputs = make_inputs(kMixedBatch, {9, 3, 64}, dtype());
  const auto batched = attend(inputs, place(kMixedBatch, 16));
  const auto starts = query_starts_of(kMixedBatch);
  for (int i = 0; i < static_cast<int>(kMixedBatch.size()); ++i) {
    SCOPED_TRACE(i);
    ASSERT_NO_FATAL_FAILURE(
        expect_equal(attend(some_of(inputs, i, i + 1), place({kMixedBatch[i]}, 16)),
                     tokens_of(batched, starts[i], starts[i + 1])));
  }
}

TEST_P(VarlenAttention, ChunkedEqualsWhole) { expect_chunked_equals_whole(dtype()); }

// Rows alone read the cache where it lies, many rows a copy of its blocks.
TEST_P(VarlenAttention, FewRowsEqualMany) {
  constexpr int kLength = 131;
  int group_size = 0;
  for (int head_dim : {5, 48, 64, 80, 96, 128, 192, 256}) {
    group_size = group_size % 6 + 1;
    const auto inputs = make_inputs({{kLength, kLength}}, {2 * group_size, 2, head_dim}, dtype());
    const auto whole = attend(inputs, place(inputs.requests, 16));
    for (int token : {0, 15, 16, 40, 63, 64, 130}) {
      SCOPED_TRACE(testing::Message() << group_size << " x " << head_dim << ", token " << token);
      const AttentionInputs alone{{{token + 1, 1}},
                                  tokens_of(inputs.queries, token, token + 1),
                                  tokens_of(inputs.keys, 0, token + 1),
                                  tokens_of(inputs.values, 0, token + 1)};
      ASSERT_NO_FATAL_FAILURE(expect_equal(attend(alone, place(alone.requests, 16)),
                                           tokens_of(whole, token, token + 1)));
    }
  }
}

TEST_P(VarlenAttention, ReadsStridedQueries) {
  const std::vector<RequestShape> requests{{12, 5}, {30, 1}};
  auto inputs = make_inputs(requests, {4, 2, 16}, dtype());
  const auto fused = random_array({6, 9, 16}, dtype(), 7);
  const auto of_fused = mx::slice(fused, {0, 3, 0}, {6, 7, 16});
  const auto every_other = mx::slice(fused, {0, 1, 0}, {6, 9, 16}, {1, 2, 1});
  const auto heads_first = mx::transpose(random_array({4, 6, 16}, dtype(), 8), {1, 0, 2});
  const auto transposed = mx::transpose(random_array({16, 4, 6}, dtype(), 9));
  for (const auto& queries : {of_fused, every_other, heads_first, transposed}) {
    inputs.queries = queries;
    expect_close(attend(inputs, place(requests, 0)), attention_reference(inputs));
  }
}

TEST_P(VarlenAttention, FallbackAgrees) {
  const std::vector<RequestShape> requests{{57, 20}, {33, 33}, {1, 1}, {40, 0}, {130, 1}};
  const auto inputs = make_inputs(requests, {6, 2, 32}, dtype());
  for (int block_size : {0, 16}) {
    const auto batch = place(requests, block_size);
    const auto fallback = attend(inputs, batch, {}, varlen_attention_fallback);
    EXPECT_EQ(fallback.dtype(), dtype());
    expect_close(fallback, attention_reference(inputs), fallback_tolerance_of(dtype()));
    expect_close(attend(inputs, batch), values_of(fallback), fallback_tolerance_of(dtype()));
  }
}

TEST_P(VarlenAttention, OddSizesWhereverTheyLie) {
  const std::vector<RequestShape> requests{{129, 33}, {17, 7}, {1, 1}, {33, 1}, {7, 7}};
  const std::vector<int> block_sizes{0, 1, 7, 16, 33, 129};
  size_t next = 0;
  for (int head_dim : kOddSizes) {
    for (const auto& [num_heads, num_kv_heads] : {std::pair{1, 1}, {7, 1}, {6, 3}}) {
      for (Placement placement : kPlacements) {
        const int block_size = block_sizes[next++ % block_sizes.size()];
        SCOPED_TRACE(testing::Message()
                     << num_heads << "/" << num_kv_heads << " x " << head_dim << ", blocks of "
                     << block_size << ", " << text_of(placement));
        auto inputs = make_inputs(requests, {num_heads, num_kv_heads, head_dim}, dtype());
        inputs.queries = mx::unflatten(placed(mx::flatten(inputs.queries, 1, 2), placement), 1,
                                       {num_heads, head_dim});
        const auto expected = attention_reference(inputs);
        const auto batch = place(requests, block_size);
        expect_close(attend(inputs, batch), expected);
        expect_close(attend(inputs, batch, {}, varlen_attention_fallback), expected,
                     fallback_tolerance_of(dtype()));
        if (HasFatalFailure()) return;
      }
    }
  }
}

class VarlenAttentionOnce : public KernelTest {};

TEST_F(VarlenAttentionOnce, LargeScoresDoNotOverflow) {
  const std::vector<RequestShape> requests{{600, 2}};
  auto inputs = make_inputs(requests, {2, 1, 16}, mx::float32);
  inputs.queries = inputs.queries * 1000.0f;
  expect_close(attend(inputs, place(requests, 0)), attention_reference(inputs), {1e-4, 1e-4});
}

TEST_F(VarlenAttentionOnce, IsOneNode) {
  const std::vector<RequestShape> requests{{3, 2}, {9, 1}};
  const auto inputs = make_inputs(requests, {2, 1, 16}, mx::float32);
  const auto batch = place(requests, 0);
  mx::array keys = fill_cache(batch, inputs.keys);
  mx::array values = fill_cache(batch, inputs.values);
  const auto result =
      varlen_attention(inputs.queries, {keys, values, batch.layout}, {.scale = 1.0f});
  EXPECT_EQ(result.inputs()[0].id(), inputs.queries.id());
  EXPECT_EQ(result.inputs()[1].id(), keys.id());
}

TEST_F(VarlenAttentionOnce, ZeroTokens) {
  const std::vector<RequestShape> requests{{0, 0}, {9, 0}};
  const auto inputs = make_inputs(requests, {2, 1, 16}, mx::float32);
  for (int block_size : {0, 16}) {
    for (AttentionOp op : {varlen_attention, varlen_attention_fallback}) {
      const auto result = attend(inputs, place(requests, block_size), {}, op);
      EXPECT_EQ(result.shape(), (mx::Shape{0, 2, 16}));
    }
  }
}

// What varlen_attention says of a cache of 32 rows, one key head and head_dim 16.
std::string refusal(const mx::array& queries, const BatchLayout& layout,
                    mx::Dtype dtype = mx::float32) {
  mx::array keys = mx::zeros({32, 2, 16}, dtype);
  mx::array values = keys;
  return message_of<std::invalid_argument>(
      [&] { varlen_attention(queries, {keys, values, layout}, {.scale = 1.0f}); });
}

TEST_F(VarlenAttentionOnce, RefusesQueriesThatDoNotFit) {
  const BatchLayout layout({0, 2}, {2}, {0, 1}, {0}, 0);
  EXPECT_EQ(refusal(mx::zeros({3, 4, 16}), layout),
            "[varlen_attention] queries must have shape (2,num_heads,16) but have (3,4,16).");
  EXPECT_EQ(refusal(mx::zeros({2, 4, 8}), layout),
            "[varlen_attention] queries must have shape (2,num_heads,16) but have (2,4,8).");
  EXPECT_EQ(refusal(mx::zeros({2, 3, 16}), layout),
            "[varlen_attention] the number of query heads must be a multiple of 2, the number of "
            "key heads, but is 3.");
  EXPECT_EQ(refusal(mx::zeros({2, 4, 16}, mx::float16), layout),
            "[varlen_attention] queries must have the dtype of the key cache, float32, but is "
            "float16.");
  EXPECT_EQ(refusal(mx::zeros({2, 4, 16}, mx::int32), layout, mx::int32),
            "[varlen_attention] queries must be float32, float16 or bfloat16 but is int32.");
}

TEST_F(VarlenAttentionOnce, RefusesLayoutsBeyondTheCache) {
  const auto queries = mx::zeros({2, 4, 16});
  EXPECT_EQ(refusal(queries, BatchLayout({0, 2}, {1}, {0, 1}, {0}, 0)),
            "[varlen_attention] request 0 has 2 queries, which must lie in [0, 1], its "
            "context_len.");
  EXPECT_EQ(refusal(queries, BatchLayout({0, 2}, {10}, {0, 1}, {23}, 0)),
            "[varlen_attention] block_tables of request 0 must name rows in [0, 32) but reach "
            "from row 23 to row 32.");
  EXPECT_EQ(refusal(queries, BatchLayout({0, 2}, {10}, {0, 1}, {1, 4}, 8)),
            "[varlen_attention] block_tables of request 0 must name rows in [0, 32) but reach "
            "from block 1 to row 39.");
  EXPECT_EQ(refusal(queries, BatchLayout({0, 2}, {10}, {0, 1}, {1}, 8)),
            "[varlen_attention] request 0 has 10 cached tokens, 2 blocks, but block_tables has "
            "room for 1.");
  EXPECT_EQ(refusal(queries, BatchLayout({0, 2}, {10}, {0, 1}, {0}, 12)),
            "[varlen_attention] the cache must have whole blocks of 12 rows but has 32 rows.");
}

}  // namespace
}  // namespace vllm_metal
