// SPDX-License-Identifier: Apache-2.0
// varlen_attention on every device by dtype, head size, block size, lengths, batch and options:
// against float64, and against its fallback.
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "kernels/attention_table.h"
#include "kernels/gpu/varlen_attention.h"
#include "kernels/table_cases.h"

namespace vllm_metal {
namespace {

using namespace testing_support;

const std::vector<mx::Dtype> kDtypes{mx::float32, mx::float16, mx::bfloat16};
const std::vector<int> kHeadSizes{64, 80, 96, 128, 192, 256};
const std::vector<int> kBlockSizes{0, 8, 16, 32, 64, 128};
const std::vector<int> kLengths{1, 17, 129, 513, 2048, 8192};
const std::vector<int> kBatches{1, 3, 16, 64};
const std::vector<int> kWindows{0, 50, 1000};
const std::vector<OptionChoice> kScores{{}, {0, 20}, {0, 0, true}, {0, 5, true}};
const std::vector<std::pair<int, int>> kHeadCounts{{2, 2}, {6, 2}, {1, 1}, {8, 1}};

// Head counts make no product of their own: each case has some of them, whatever its other choices.
std::pair<int, int> head_counts(unsigned turn) {
  return kHeadCounts[(turn * 2654435769u >> 16) % kHeadCounts.size()];
}

// A device, and indices of a dtype and a head size.
using TableParam = std::tuple<TableDevice, int, int>;

std::string name_of_param(const ::testing::TestParamInfo<TableParam>& info) {
  const auto& [device, dtype, head_size] = info.param;
  return text(name_of(device), "_", kDtypes[dtype], "_", kHeadSizes[head_size]);
}

class AttentionTable : public KernelTest, public ::testing::WithParamInterface<TableParam> {
 protected:
  AttentionTable() { std::get<0>(GetParam()).use(); }

  // The cases of this dtype and head size.
  std::vector<AttentionCase> cases() const {
    const auto [device, dtype, head_size] = GetParam();
    const auto count = [](const auto& choices) { return static_cast<int>(choices.size()); };
    // Head sizes come first. Other devices and dtypes have other cases.
    const unsigned seed = device.isa ? 10 + static_cast<unsigned>(*device.isa) * 3 + dtype : dtype;
    std::vector<AttentionCase> result;
    unsigned turn = static_cast<unsigned>(dtype);
    for (const Levels& levels : table_cases({count(kHeadSizes), count(kBlockSizes), count(kLengths),
                                             count(kBatches), count(kWindows), count(kScores), 2},
                                            seed)) {
      turn += 3;
      if (levels[0] != head_size) continue;
      const auto [num_heads, num_kv_heads] = head_counts(turn);
      OptionChoice options = kScores[levels[5]];
      options.sliding_window = kWindows[levels[4]];
      result.push_back({.dtype = kDtypes[dtype],
                        .heads = {num_heads, num_kv_heads, kHeadSizes[head_size]},
                        .block_size = kBlockSizes[levels[1]],
                        .length = kLengths[levels[2]],
                        .batch = kBatches[levels[3]],
                        .prefill = levels[6] == 0,
                        .options = options});
    }
    return result;
  }

  // A GPU may leave a batch to MLX's ops.
  Tolerance tolerance(const AttentionCase& c, const TableBatch& batch) const {
    const bool falls_back = !std::get<0>(GetParam()).isa &&
                            gpu::fallback_is_faster(batch.queries, batch.layout(), batch.options);
    return falls_back ? fallback_tolerance_of(c.dtype) : tolerance_of(c.dtype);
  }
};

INSTANTIATE_TEST_SUITE_P(All, AttentionTable,
                         ::testing::Combine(::testing::ValuesIn(table_devices()),
                                            ::testing::Range(0, 3), ::testing::Range(0, 6)),
                         name_of_param);

// Calls f(request, query) for some queries of a case, the first and the last of all among them, of
// about `budget` pairs of query and key.
template <typename Function>
void for_some_queries(const TableBatch& batch, int64_t budget, const Function& f) {
  std::mt19937 random(3);
  const auto pick = [&](int count) { return static_cast<int>(random() % count); };
  const int num_requests = static_cast<int>(batch.requests().size());
  f(0, 0);
  f(num_requests - 1, batch.requests().back().num_queries - 1);
  while (budget > 0) {
    const int request = pick(num_requests);
    const auto [context_len, num_queries] = batch.requests()[request];
    f(request, pick(num_queries));
    budget -= context_len + 200;
  }
}

void expect_finite(const std::vector<double>& values) {
  for (size_t i = 0; i < values.size(); ++i) ASSERT_TRUE(std::isfinite(values[i])) << "at " << i;
}

void check_against_reference(const AttentionCase& c, const TableBatch& batch,
                             const std::vector<double>& result, Tolerance tolerance) {
  const size_t dim = c.heads.head_dim;
  int next_head = 0;
  for_some_queries(batch, 1'000'000 / static_cast<int64_t>(dim), [&](int request, int query) {
    if (::testing::Test::HasFatalFailure()) return;
    const int head = next_head++ % c.heads.num_heads;
    SCOPED_TRACE(text("request ", request, ", query ", query, ", head ", head));
    const size_t first =
        ((batch.layout().query_starts[request] + query) * c.heads.num_heads + head) * dim;
    expect_close(std::vector<double>(result.begin() + first, result.begin() + first + dim),
                 batch.reference(request, query, head), tolerance);
  });
}

// The fallback takes requests one by one: some stand for all.
void check_against_fallback(const AttentionCase& c, TableBatch& batch,
                            const std::vector<double>& result) {
  const size_t width = static_cast<size_t>(c.heads.num_heads) * c.heads.head_dim;
  for (int request : {0, c.batch / 2, c.batch - 1}) {
    const int begin = batch.layout().query_starts[request];
    const int end = batch.layout().query_starts[request + 1];
    const BatchLayout layout = batch.layout_of(request);
    const auto fallback = varlen_attention_fallback(
        tokens_of(batch.queries, begin, end), {batch.keys, batch.values, layout}, batch.options);
    SCOPED_TRACE(text("the fallback of request ", request));
    ASSERT_EQ(fallback.dtype(), c.dtype);
    ASSERT_NO_FATAL_FAILURE(expect_close(
        std::vector<double>(result.begin() + begin * width, result.begin() + end * width),
        values_of(fallback), fallback_tolerance_of(c.dtype)));
    if (c.batch == 1) return;
  }
}

TEST_P(AttentionTable, AgreesWithFloat64AndWithTheFallback) {
  const auto all = cases();
  Progress progress(all.size());
  for (const AttentionCase& c : all) {
    SCOPED_TRACE(text_of(c));
    TableBatch batch(c);
    const auto result = values_of(
        varlen_attention(batch.queries, {batch.keys, batch.values, batch.layout()}, batch.options));
    ASSERT_NO_FATAL_FAILURE(expect_finite(result));
    ASSERT_NO_FATAL_FAILURE(check_against_reference(c, batch, result, tolerance(c, batch)));
    ASSERT_NO_FATAL_FAILURE(check_against_fallback(c, batch, result));
    progress.step();
  }
}

}  // namespace
}  // namespace vllm_metal
