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
using vllm_metal::testing_support::expect_close;
using vllm_metal::testing_support::make_inputs;
using vllm_metal::testing_support::place;
using vllm_metal::testing_support::Rotation;
using vllm_metal::testing_support::tolerance_of;

template <typename T>
mx::Dtype dtype_of() {
  if (std::is_same_v<T, half>) return mx::float16;
  return std::is_same_v<T, bfloat> ? mx::bfloat16 : mx::float32;
}

inline std::vector<float> sinks_of(int num_heads) {
  std::vector<float> sinks(num_heads);
  for (int head = 0; head < num_heads; ++head) sinks[head] = 0.7f * static_cast<float>(head - 2);
  return sinks;
}

// One query and head in float64. `keys` and `values`: of its key head, rows `stride` apart.
struct ReferenceQuery {
  const double* query;
  const double* keys;
  const double* values;
  int first, end, stride, head_dim;
  const float* sink;  // null: none
};

inline void reference_query(const ReferenceQuery& q, const AttentionOptions& options, double* out) {
  std::vector<double> weights;
  double highest = q.sink == nullptr ? -INFINITY : double{*q.sink};
  for (int key = q.first; key < q.end; ++key) {
    double score = options.scale * std::inner_product(q.query, q.query + q.head_dim,
                                                      q.keys + int64_t{key} * q.stride, 0.0);
    if (options.softcap > 0) score = options.softcap * std::tanh(score / options.softcap);
    weights.push_back(score);
    highest = std::max(highest, score);
  }
  double sum = q.sink == nullptr ? 0 : std::exp(*q.sink - highest);
  for (double& weight : weights) sum += weight = std::exp(weight - highest);
  for (int d = 0; d < q.head_dim; ++d) {
    double total = 0;
    for (int key = q.first; key < q.end; ++key)
      total += weights[key - q.first] * q.values[int64_t{key} * q.stride + d];
    out[d] = total / sum;
  }
}

// [num_tokens, num_heads, head_dim]
inline std::vector<double> reference(const AttentionInputs& inputs, const AttentionOptions& options,
                                     const std::vector<float>& sinks) {
  using vllm_metal::testing_support::values_of;
  const int num_heads = inputs.queries.shape(1), head_dim = inputs.queries.shape(2);
  const int num_kv_heads = inputs.keys.shape(1), stride = num_kv_heads * head_dim;
  const auto queries = values_of(inputs.queries);
  const auto keys = values_of(inputs.keys), values = values_of(inputs.values);
  std::vector<double> result(queries.size());
  int64_t token = 0, first_key = 0;
  for (const auto& request : inputs.requests) {
    for (int i = 0; i < request.num_queries; ++i, ++token) {
      const int end = request.context_len - request.num_queries + i + 1;
      const int first = options.window > 0 ? std::max(0, end - options.window) : 0;
      for (int head = 0; head < num_heads; ++head) {
        const int64_t row = (token * num_heads + head) * head_dim;
        const int64_t offset =
            first_key * stride + int64_t{head / (num_heads / num_kv_heads)} * head_dim;
        reference_query({queries.data() + row, keys.data() + offset, values.data() + offset, first,
                         end, stride, head_dim, options.sinks ? &sinks[head] : nullptr},
                        options, result.data() + row);
      }
    }
    first_key += request.context_len;
  }
  return result;
}

struct AttentionCase {
  std::vector<RequestShape> requests;
  int num_heads, num_kv_heads, block_size;
  AttentionOptions options;
  PlanOptions plan;
  unsigned seed = 1;
};

inline std::string text_of(const AttentionCase& c, int head_dim) {
  std::ostringstream out;
  out << c.num_heads << "/" << c.num_kv_heads << " x " << head_dim << ", blocks of " << c.block_size
      << ", window " << c.options.window << ", softcap " << c.options.softcap << ", sinks "
      << c.options.sinks << ", way " << static_cast<int>(c.plan.way) << ", splits of "
      << c.plan.split << ", seed " << c.seed << ", requests";
  for (const auto& request : c.requests)
    out << " " << request.num_queries << "@" << request.context_len;
  return out.str();
}

template <typename T, int kHeadDim, int kHeads>
void check_case(AttentionCase c) {
  SCOPED_TRACE(text_of(c, kHeadDim));
  if (c.options.scale == 0) c.options.scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
  const auto inputs =
      make_inputs(c.requests, {c.num_heads, c.num_kv_heads, kHeadDim}, dtype_of<T>(), c.seed);
  const auto batch = place(c.requests, c.block_size, c.seed);
  const auto sinks = sinks_of(c.num_heads);
  AttentionLaunch<T, kHeadDim> launch(inputs, batch, c.options, sinks);
  const AttentionPlan plan =
      plan_batch(c.requests, c.num_heads / c.num_kv_heads, c.options.window, c.plan);
  expect_close(launch.template run<kHeads>(plan, c.plan.way, c.seed),
               reference(inputs, c.options, sinks), tolerance_of(dtype_of<T>()));
}

}  // namespace gpu_harness
