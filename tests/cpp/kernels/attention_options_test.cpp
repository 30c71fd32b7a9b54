// SPDX-License-Identifier: Apache-2.0
// varlen_attention with a sliding window, a soft cap and sinks, in all combinations.
#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels/attention_batch.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

// Chunks and decodes on both sides of blocks and spans.
const std::vector<RequestShape> kMixedBatch{{57, 20}, {140, 140}, {1, 1},   {64, 2},
                                            {65, 1},  {700, 3},   {513, 1}, {1500, 1}};

// Windows: one key, within a block, of a block, across blocks and spans, longer than any request.
const std::vector<OptionChoice> kChoices{{1},           {5},      {64},         {65},
                                         {600},         {5000},   {0, 2},       {0, 0, true},
                                         {30, 0, true}, {100, 3}, {0, 5, true}, {129, 30, true}};

class AttentionOptionsTest : public KernelTestP {};
INSTANTIATE_KERNEL_TESTS(AttentionOptionsTest);

std::string text_of(const OptionChoice& choice) {
  std::ostringstream out;
  out << "window " << choice.sliding_window << ", cap " << choice.soft_cap
      << (choice.sinks ? ", sinks" : "");
  return out.str();
}

TEST_P(AttentionOptionsTest, MatchReference) {
  for (const HeadShape& heads : std::vector<HeadShape>{{6, 2, 64}, {7, 1, 20}, {2, 2, 80}}) {
    const auto inputs = make_inputs(kMixedBatch, heads, dtype());
    for (const OptionChoice& choice : kChoices) {
      SCOPED_TRACE(text_of(choice));
      ASSERT_NO_FATAL_FAILURE(expect_close(attend(inputs, place(kMixedBatch, 16), choice),
                                           attention_reference(inputs, choice)));
    }
  }
}

TEST_P(AttentionOptionsTest, FallbackMatchesReference) {
  const auto inputs = make_inputs(kMixedBatch, {6, 2, 32}, dtype());
  for (const OptionChoice& choice : kChoices) {
    for (int block_size : {0, 16}) {
      SCOPED_TRACE(text_of(choice));
      const auto result =
          attend(inputs, place(kMixedBatch, block_size), choice, varlen_attention_fallback);
      EXPECT_EQ(result.dtype(), dtype());
      ASSERT_NO_FATAL_FAILURE(expect_close(result, attention_reference(inputs, choice)));
    }
  }
}

TEST_P(AttentionOptionsTest, PagedEqualsContiguousAndBatchedEqualsAlone) {
  const auto inputs = make_inputs(kMixedBatch, {9, 3, 64}, dtype());
  const auto starts = query_starts_of(kMixedBatch);
  for (const OptionChoice& choice : kChoices) {
    SCOPED_TRACE(text_of(choice));
    const auto contiguous = attend(inputs, place(kMixedBatch, 0), choice);
    for (int block_size : {8, 48})
      expect_equal(attend(inputs, place(kMixedBatch, block_size), choice), contiguous);
    for (int i = 0; i < static_cast<int>(kMixedBatch.size()); ++i)
      expect_equal(attend(some_of(inputs, i, i + 1), place({kMixedBatch[i]}, 16), choice),
                   tokens_of(contiguous, starts[i], starts[i + 1]));
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionOptionsTest, ChunkedEqualsWhole) {
  for (const OptionChoice& choice : kChoices) {
    SCOPED_TRACE(text_of(choice));
    ASSERT_NO_FATAL_FAILURE(expect_chunked_equals_whole(dtype(), choice));
  }
}

TEST_P(AttentionOptionsTest, WindowOfTheWholeContextChangesNothing) {
  const auto inputs = make_inputs(kMixedBatch, {6, 2, 32}, dtype());
  const auto batch = place(kMixedBatch, 16);
  for (int window : {1500, 100'000, std::numeric_limits<int>::max()})
    expect_equal(attend(inputs, batch, {window}), attend(inputs, batch));
}

// Blocks before the window are those of others by now: their table entries name nothing.
TEST_P(AttentionOptionsTest, ReadsNothingBeforeTheWindow) {
  constexpr int kBlockSize = 16, kWindow = 100;
  const auto inputs = make_inputs(kMixedBatch, {6, 2, 64}, dtype());
  auto batch = place(kMixedBatch, kBlockSize);
  mx::array keys = fill_cache(batch, inputs.keys);
  mx::array values = fill_cache(batch, inputs.values);
  const BatchLayout& whole = batch.layout;
  auto tables = whole.block_tables;
  for (int i = 0; i < whole.num_requests(); ++i) {
    const auto [context_len, num_queries] = kMixedBatch[i];
    const int unseen = std::max(0, context_len - num_queries + 1 - kWindow) / kBlockSize;
    std::fill_n(tables.begin() + i * whole.blocks_per_request(), unseen,
                std::numeric_limits<int32_t>::max());
  }
  const BatchLayout layout(whole.query_starts, whole.context_lens, whole.slot_mapping, tables,
                           kBlockSize);
  const auto options = options_of(inputs, {kWindow});
  const auto expected = attention_reference(inputs, OptionChoice{kWindow});
  for (AttentionOp op : {varlen_attention, varlen_attention_fallback})
    expect_close(op(inputs.queries, {keys, values, layout}, options), expected);
}

class AttentionOptionsOnce : public KernelTest {};

TEST_F(AttentionOptionsOnce, SinksFarAboveAndBelowTheScores) {
  const std::vector<RequestShape> requests{{600, 2}};
  const auto inputs = make_inputs(requests, {3, 1, 16}, mx::float32);
  const auto batch = place(requests, 0);
  mx::array keys = fill_cache(batch, inputs.keys);
  mx::array values = fill_cache(batch, inputs.values);
  AttentionOptions options = options_of(inputs, {});
  const auto with_sinks = [&](float sink) {
    options.sinks = mx::full({3}, sink);
    return varlen_attention(inputs.queries, {keys, values, batch.layout}, options);
  };
  const auto without = attention_reference(inputs);
  expect_close(with_sinks(-std::numeric_limits<float>::infinity()), without);
  expect_close(with_sinks(-1e30f), without);
  expect_close(with_sinks(1000.0f), std::vector<double>(without.size(), 0.0));
}

TEST_F(AttentionOptionsOnce, SoftCapKeepsSmallScoresAndBoundsLargeOnes) {
  const std::vector<RequestShape> requests{{90, 4}, {33, 1}};
  auto inputs = make_inputs(requests, {4, 2, 16}, mx::float32);
  for (float factor : {1e-3f, 1e-1f, 1.0f, 1e3f, 1e6f}) {
    inputs.queries = inputs.queries * factor;
    expect_close(attend(inputs, place(requests, 0), {0, 20}),
                 attention_reference(inputs, OptionChoice{0, 20}), {2e-5, 2e-5});
    if (HasFatalFailure()) return;
  }
}

TEST_F(AttentionOptionsOnce, SinksMayBeStridedOrPending) {
  const std::vector<RequestShape> requests{{40, 3}};
  const auto inputs = make_inputs(requests, {4, 2, 16}, mx::float32);
  const auto batch = place(requests, 0);
  mx::array keys = fill_cache(batch, inputs.keys);
  mx::array values = fill_cache(batch, inputs.values);
  AttentionOptions options = options_of(inputs, {0, 0, true});
  const mx::array pairs = mx::stack({*options.sinks, mx::zeros({4})}, 1);
  options.sinks = mx::squeeze(mx::slice(pairs, {0, 0}, {4, 1}), 1);
  expect_close(varlen_attention(inputs.queries, {keys, values, batch.layout}, options),
               attention_reference(inputs, OptionChoice{0, 0, true}));
}

std::string refusal(const AttentionOptions& options) {
  const BatchLayout layout({0, 2}, {2}, {0, 1}, {0}, 0);
  mx::array keys = mx::zeros({32, 2, 16});
  mx::array values = keys;
  return message_of<std::invalid_argument>(
      [&] { varlen_attention(mx::zeros({2, 4, 16}), {keys, values, layout}, options); });
}

TEST_F(AttentionOptionsOnce, RefusesWhatDoesNotFit) {
  EXPECT_EQ(refusal({.scale = 1, .sliding_window = -1}),
            "[varlen_attention] sliding_window must be positive, or 0 for all keys, but is -1.");
  EXPECT_EQ(refusal({.scale = 1, .soft_cap = -2}),
            "[varlen_attention] soft_cap must be positive, or 0 for none, but is -2.");
  EXPECT_EQ(refusal({.scale = 1, .soft_cap = std::numeric_limits<float>::quiet_NaN()}),
            "[varlen_attention] soft_cap must be positive, or 0 for none, but is nan.");
  EXPECT_EQ(refusal({.scale = 1, .sinks = mx::zeros({2})}),
            "[varlen_attention] sinks must have shape (4) but has (2).");
  EXPECT_EQ(refusal({.scale = 1, .sinks = mx::zeros({4}, mx::bfloat16)}),
            "[varlen_attention] sinks must be float32 but is bfloat16.");
}

}  // namespace
}  // namespace vllm_metal
