// SPDX-License-Identifier: Apache-2.0
// The attention kernels' own text in the harness: what the table of cases does not meet.
#include <gtest/gtest.h>

#include "gpu/attention_cases.h"

namespace gpu_harness {
namespace {

constexpr Way kWays[] = {Way::kPrefill, Way::kPlainPrefill, Way::kDecode, Way::kMixed};

// One batch of half, head_dim 64, and what a launch of it gives.
struct Launched {
  AttentionInputs inputs;
  PlacedBatch batch;
  AttentionOptions options;
  AttentionLaunch<half, 64> launch;

  Launched(const std::vector<RequestShape>& requests, const HeadShape& heads,
           const OptionChoice& choice = {}, int block_size = 16)
      : inputs(make_inputs(requests, heads, mx::float16)),
        batch(place(requests, block_size)),
        options(options_of(inputs, choice)),
        launch(inputs, batch, options) {}

  std::vector<double> run(const PlanOptions& how, unsigned seed = 1) {
    const int group_size = inputs.queries.shape(1) / inputs.keys.shape(1);
    return launch.run<4>(plan_batch(inputs.requests, group_size, options.sliding_window, how),
                         how.way, seed);
  }
  void expect_reference(const std::vector<double>& actual) {
    expect_close(actual, attention_reference(inputs, options), tolerance_of(mx::float16));
  }
};

TEST(AttentionKernels, OrderOfThreadsChangesNothing) {
  Launched a({{90, 40}, {300, 1}, {3, 2}}, {6, 2, 64}, {.sliding_window = 70});
  for (Way way : kWays) {
    const auto first = a.run({.way = way, .split = 64}, 1);
    a.expect_reference(first);
    for (unsigned seed : {2, 3, 4}) EXPECT_EQ(a.run({.way = way, .split = 64}, seed), first);
  }
}

TEST(AttentionKernels, SplitsAndBlocksThatNoQuerySees) {
  for (int window : {1, 5, 33}) {
    SCOPED_TRACE(window);
    Launched a({{400, 2}, {65, 1}, {129, 40}}, {4, 2, 64},
               {.sliding_window = window, .sinks = window == 5});
    // Splits before the window, all of whose keys are masked, come to the merge like others.
    a.expect_reference(a.run({.way = Way::kDecode, .split = 32, .skip_unseen = false}));
    a.expect_reference(a.run({.way = Way::kPrefill}));
  }
}

TEST(AttentionKernels, RequestsWithoutQueries) {
  Launched a({{0, 0}, {40, 7}, {9, 0}, {1, 1}}, {4, 2, 64});
  for (Way way : kWays) a.expect_reference(a.run({.way = way}));
}

TEST(AttentionKernels, QueriesOfAnyTokenAndHeadStride) {
  Launched a({{40, 7}, {300, 1}}, {4, 2, 64});
  constexpr int kTokens = 8, kHeads = 4, kHeadDim = 64;
  const auto plain = elements_of<half>(a.inputs.queries);
  // Inside of a fused projection, and heads first. What lies between is NaN.
  for (const auto& [token_stride, head_stride] :
       {std::pair{int64_t{10 * kHeadDim}, int64_t{kHeadDim}},
        std::pair{int64_t{kHeadDim}, int64_t{kTokens * kHeadDim}}}) {
    const size_t size = (kTokens - 1) * token_stride + (kHeads - 1) * head_stride + kHeadDim;
    std::vector<half> elements(size, half(NAN));
    for (int token = 0; token < kTokens; ++token) {
      for (int head = 0; head < kHeads; ++head)
        std::copy_n(plain.begin() + (token * kHeads + head) * kHeadDim, kHeadDim,
                    elements.begin() + token * token_stride + head * head_stride);
    }
    a.launch.set_queries(elements, token_stride, head_stride);
    for (Way way : kWays) a.expect_reference(a.run({.way = way}));
  }
}

TEST(AttentionKernels, GroupsOfQueryHeadsOfAnySize) {
  for (const auto& [num_heads, num_kv_heads] :
       {std::pair{1, 1}, {5, 5}, {7, 1}, {9, 1}, {40, 1}, {33, 3}}) {
    Launched a({{40, 7}, {130, 1}}, {num_heads, num_kv_heads, 64}, {.sinks = true});
    for (Way way : kWays) a.expect_reference(a.run({.way = way, .split = 64}));
  }
}

TEST(AttentionKernels, LargeScoresAndSinks) {
  Launched a({{90, 3}, {300, 1}}, {3, 1, 64}, {.sinks = true});
  AttentionOptions options = a.options;
  options.scale = 30.0f;
  options.sinks = mx::array({-1400.0f, 0.0f, 1400.0f});
  AttentionLaunch<half, 64> launch(a.inputs, a.batch, options);
  for (Way way : kWays) {
    const PlanOptions how{.way = way, .split = 64};
    expect_close(launch.run<4>(plan_batch(a.inputs.requests, 3, 0, how), way, 1),
                 attention_reference(a.inputs, options), {1e-3, 1e-3});
  }
}

}  // namespace
}  // namespace gpu_harness
