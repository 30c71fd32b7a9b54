// SPDX-License-Identifier: Apache-2.0
// The attention kernels against float64: a table of cases, the same for each dtype.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "gpu/attention_launch.h"
#include "kernels/table_cases.h"

namespace gpu_harness {

namespace mx = mlx::core;
using vllm_metal::testing_support::attention_reference;
using vllm_metal::testing_support::expect_close;
using vllm_metal::testing_support::make_inputs;
using vllm_metal::testing_support::OptionChoice;
using vllm_metal::testing_support::options_of;
using vllm_metal::testing_support::place;
using vllm_metal::testing_support::tolerance_of;

template <typename T>
mx::Dtype dtype_of() {
  if (std::is_same_v<T, half>) return mx::float16;
  return std::is_same_v<T, bfloat> ? mx::bfloat16 : mx::float32;
}

struct AttentionCase {
  std::vector<RequestShape> requests;
  int num_heads, num_kv_heads, block_size;
  OptionChoice options;
  PlanOptions plan;
  unsigned seed = 1;
};

inline std::string text_of(const AttentionCase& c, int head_dim) {
  std::ostringstream out;
  out << c.num_heads << "/" << c.num_kv_heads << " x " << head_dim << ", blocks of " << c.block_size
      << ", window " << c.options.sliding_window << ", softcap " << c.options.soft_cap << ", sinks "
      << c.options.sinks << ", way " << static_cast<int>(c.plan.way) << ", splits of "
      << c.plan.split << ", seed " << c.seed << ", requests";
  for (const auto& request : c.requests)
    out << " " << request.num_queries << "@" << request.context_len;
  return out.str();
}

template <typename T, int kHeadDim, int kHeads>
void check_case(const AttentionCase& c) {
  SCOPED_TRACE(text_of(c, kHeadDim));
  const auto inputs =
      make_inputs(c.requests, {c.num_heads, c.num_kv_heads, kHeadDim}, dtype_of<T>(), c.seed);
  const auto batch = place(c.requests, c.block_size, c.seed);
  const AttentionOptions options = options_of(inputs, c.options);
  AttentionLaunch<T, kHeadDim> launch(inputs, batch, options);
  const AttentionPlan plan =
      plan_batch(c.requests, c.num_heads / c.num_kv_heads, options.sliding_window, c.plan);
  expect_close(launch.template run<kHeads>(plan, c.plan.way, c.seed),
               attention_reference(inputs, options), tolerance_of(dtype_of<T>()));
}

}  // namespace gpu_harness
