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
const std::vector<AttentionOptions> kOptions = {
    {},
    {.window = 1},
    {.window = 50, .sinks = true},
    {.softcap = 3.0f},
    {.window = 129, .softcap = 20.0f, .sinks = true},
    {.sinks = true},
};
constexpr int kBlockSizes[] = {16, 0, 8, 32, 128};
constexpr int kSplits[] = {128, 64, 256};

// Every way with every batch; the rest in turns, so that each meets many of the others.
template <typename T, int kHeadDim, int kHeads>
void check_cases(unsigned first) {
  unsigned turn = first;
  for (Way way : {Way::kPrefill, Way::kPlainPrefill, Way::kDecode, Way::kMixed}) {
    for (const auto& requests : kBatches) {
      const bool few_heads = turn % 2 == 0;
      check_case<T, kHeadDim, kHeads>({.requests = requests,
                                       .num_heads = few_heads ? 3 : 10,
                                       .num_kv_heads = few_heads ? 3 : 2,
                                       .block_size = kBlockSizes[turn % 5],
                                       .options = kOptions[turn % kOptions.size()],
                                       .plan = {.way = way, .split = kSplits[turn % 3]},
                                       .seed = turn + 1});
      if (testing::Test::HasFailure()) return;
      ++turn;
    }
  }
}

TEST(AttentionKernels, Float64) { check_cases<float, 64, 4>(0); }
TEST(AttentionKernels, Float80) { check_cases<float, 80, 2>(1); }
TEST(AttentionKernels, Float96) { check_cases<float, 96, 4>(2); }
TEST(AttentionKernels, Float128) { check_cases<float, 128, 4>(3); }
TEST(AttentionKernels, Float192) { check_cases<float, 192, 2>(4); }
TEST(AttentionKernels, Float256) { check_cases<float, 256, 2>(5); }
TEST(AttentionKernels, Half64) { check_cases<half, 64, 4>(6); }
TEST(AttentionKernels, Half128) { check_cases<half, 128, 4>(7); }
TEST(AttentionKernels, Half256) { check_cases<half, 256, 2>(8); }
TEST(AttentionKernels, Bfloat64) { check_cases<bfloat, 64, 4>(9); }
TEST(AttentionKernels, Bfloat80) { check_cases<bfloat, 80, 2>(10); }
TEST(AttentionKernels, Bfloat128) { check_cases<bfloat, 128, 4>(11); }

}  // namespace
}  // namespace gpu_harness
