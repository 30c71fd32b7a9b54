// SPDX-License-Identifier: Apache-2.0
// The attention kernels' own text in the harness: dtypes, head sizes, blocks, batches, windows,
// caps and sinks, each way through the kernels, against float64.
#include <gtest/gtest.h>

#include "gpu/attention_cases.h"

namespace gpu_harness {
namespace {

const std::vector<std::vector<RequestShape>> kBatches = {
    {{1, 1}},
    {{5, 5}, {1, 1}, {64, 1}},
    {{130, 33}, {257, 1}, {31, 31}},
    {{700, 3}, {70, 40}, {129, 1}},
};
const std::vector<OptionChoice> kOptions = {
    {},
    {.sliding_window = 1},
    {.sliding_window = 50, .sinks = true},
    {.soft_cap = 3.0f},
    {.sliding_window = 129, .soft_cap = 20.0f, .sinks = true},
    {.sinks = true},
};
constexpr int kBlockSizes[] = {16, 0, 8, 32, 128, 64};
constexpr int kSplits[] = {128, 64, 256};

struct Choice {
  int block_size, split;
  OptionChoice options;
};

// What the `turn`-th case meets: each choice in turn, or all of them where all cases are wanted.
std::vector<Choice> choices(unsigned turn) {
  if (!vllm_metal::testing_support::all_cases())
    return {{kBlockSizes[turn / 5 % std::size(kBlockSizes)], kSplits[turn % 3],
             kOptions[turn % kOptions.size()]}};
  std::vector<Choice> result;
  for (int block_size : kBlockSizes) {
    for (const auto& options : kOptions) result.push_back({block_size, kSplits[turn % 3], options});
  }
  return result;
}

// Every way with every batch.
template <typename T, int kHeadDim, int kHeads>
void check_cases(unsigned first) {
  unsigned turn = first;
  for (Way way : {Way::kPrefill, Way::kPlainPrefill, Way::kDecode, Way::kMixed}) {
    for (const auto& requests : kBatches) {
      for (const auto& [block_size, split, options] : choices(turn)) {
        const bool few_heads = turn / 6 % 2 == 0;  // with each of the options
        check_case<T, kHeadDim, kHeads>({.requests = requests,
                                         .num_heads = few_heads ? 3 : 10,
                                         .num_kv_heads = few_heads ? 3 : 2,
                                         .block_size = block_size,
                                         .options = options,
                                         .plan = {.way = way, .split = split},
                                         .seed = turn + 1});
        if (testing::Test::HasFailure()) return;
      }
      ++turn;
    }
  }
}

TEST(AttentionKernelsTable, Float64) { check_cases<float, 64, 4>(0); }
TEST(AttentionKernelsTable, Float80) { check_cases<float, 80, 2>(1); }
TEST(AttentionKernelsTable, Float96) { check_cases<float, 96, 4>(2); }
TEST(AttentionKernelsTable, Float128) { check_cases<float, 128, 4>(3); }
TEST(AttentionKernelsTable, Float192) { check_cases<float, 192, 2>(4); }
TEST(AttentionKernelsTable, Float256) { check_cases<float, 256, 2>(5); }
TEST(AttentionKernelsTable, Half64) { check_cases<half, 64, 8>(6); }
TEST(AttentionKernelsTable, Half80) { check_cases<half, 80, 4>(7); }
TEST(AttentionKernelsTable, Half96) { check_cases<half, 96, 1>(8); }
TEST(AttentionKernelsTable, Half128) { check_cases<half, 128, 8>(9); }
TEST(AttentionKernelsTable, Half192) { check_cases<half, 192, 4>(10); }
TEST(AttentionKernelsTable, Half256) { check_cases<half, 256, 4>(11); }
TEST(AttentionKernelsTable, Bfloat64) { check_cases<bfloat, 64, 1>(12); }
TEST(AttentionKernelsTable, Bfloat80) { check_cases<bfloat, 80, 8>(13); }
TEST(AttentionKernelsTable, Bfloat96) { check_cases<bfloat, 96, 8>(14); }
TEST(AttentionKernelsTable, Bfloat128) { check_cases<bfloat, 128, 2>(15); }
TEST(AttentionKernelsTable, Bfloat192) { check_cases<bfloat, 192, 1>(16); }
TEST(AttentionKernelsTable, Bfloat256) { check_cases<bfloat, 256, 1>(17); }

}  // namespace
}  // namespace gpu_harness
