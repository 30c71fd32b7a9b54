// SPDX-License-Identifier: Apache-2.0
// Batches for the tests of varlen_attention, parts of them, and their attention in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/kernel_test.h"
#include "kernels/kv_view.h"
#include "kernels/varlen_attention.h"
#include "selftest/attention_inputs.h"

namespace vllm_metal::testing_support {

using selftest::attend;
using selftest::AttentionInputs;
using selftest::AttentionOp;
using selftest::context_lens_of;
using selftest::fill_cache;
using selftest::HeadShape;
using selftest::make_inputs;
using selftest::OptionChoice;
using selftest::options_of;
using selftest::place;
using selftest::PlacedBatch;
using selftest::query_starts_of;
using selftest::RequestShape;

inline mx::array tokens_of(const mx::array& x, int begin, int end) {
  return mx::slice(x, {begin, 0, 0}, {end, x.shape(1), x.shape(2)});
}

// Requests [begin, end) of a batch, alone.
inline AttentionInputs some_of(const AttentionInputs& inputs, int begin, int end) {
  const auto starts = query_starts_of(inputs.requests);
  int first_key = 0, last_key = 0;
  for (int i = 0; i < end; ++i) {
    if (i < begin) first_key += inputs.requests[i].context_len;
    last_key += inputs.requests[i].context_len;
  }
  return {{inputs.requests.begin() + begin, inputs.requests.begin() + end},
          tokens_of(inputs.queries, starts[begin], starts[end]),
          tokens_of(inputs.keys, first_key, last_key),
          tokens_of(inputs.values, first_key, last_key)};
}

// That a prompt in one piece, in chunks and token by token comes out the same, query by query.
inline void expect_chunked_equals_whole(mx::Dtype dtype, const OptionChoice& choice = {}) {
  constexpr int kLength = 560;
  const auto inputs = make_inputs({{kLength, kLength}}, {6, 2, 24}, dtype);
  const auto whole = attend(inputs, place(inputs.requests, 16), choice);
  int begin = 0;
  for (int chunk : {1, 31, 2, 64, 400, 58, 1, 1, 1, 1}) {
    const int end = begin + chunk;
    const AttentionInputs piece{{{end, chunk}},
                                tokens_of(inputs.queries, begin, end),
                                tokens_of(inputs.keys, 0, end),
                                tokens_of(inputs.values, 0, end)};
    SCOPED_TRACE(testing::Message() << begin << " to " << end);
    ASSERT_NO_FATAL_FAILURE(expect_equal(attend(piece, place(piece.requests, 16), choice),
                                         tokens_of(whole, begin, end)));
    begin = end;
  }
  ASSERT_EQ(begin, kLength);
}

constexpr double kNoSink = -std::numeric_limits<double>::infinity();

// Keys [begin, end) of a key head, as a query head sees them. Rows lie `stride` apart.
struct ReferenceHead {
  const double* keys;
  const double* values;
  int stride;
  int head_dim;
  double scale;
  double soft_cap;
  double sink;

  void attend(const double* query, int begin, int end, double* out) const {
    std::vector<double> weights(end - begin);
    double highest = sink;
    for (int key = begin; key < end; ++key) {
      double score = scale * std::inner_product(query, query + head_dim,
                                                keys + static_cast<size_t>(key) * stride, 0.0);
      if (soft_cap > 0) score = soft_cap * std::tanh(score / soft_cap);
      weights[key - begin] = score;
      highest = std::max(highest, score);
    }
    double sum = std::exp(sink - highest);
    std::fill_n(out, head_dim, 0.0);
    for (int key = begin; key < end; ++key) {
      const double weight = std::exp(weights[key - begin] - highest);
      sum += weight;
      const double* value = values + static_cast<size_t>(key) * stride;
      for (int d = 0; d < head_dim; ++d) out[d] += weight * value[d];
    }
    for (int d = 0; d < head_dim; ++d) out[d] /= sum;
  }
};

// [num_tokens, num_heads, head_dim]
inline std::vector<double> attention_reference(const AttentionInputs& inputs,
                                               const AttentionOptions& options) {
  const int num_heads = inputs.queries.shape(1), head_dim = inputs.queries.shape(2);
  const int num_kv_heads = inputs.keys.shape(1);
  const auto queries = values_of(inputs.queries);
  const auto keys = values_of(inputs.keys), values = values_of(inputs.values);
  const auto sinks = options.sinks ? values_of(*options.sinks) : std::vector<double>{};
  std::vector<double> result(queries.size());
  size_t query = 0, first_key = 0;
  for (const auto& request : inputs.requests) {
    for (int i = 0; i < request.num_queries; ++i, ++query) {
      const int end = request.context_len - request.num_queries + i + 1;
      const int begin = options.sliding_window == 0 ? 0 : std::max(0, end - options.sliding_window);
      for (int head = 0; head < num_heads; ++head) {
        const size_t offset = (query * num_heads + head) * head_dim;
        const size_t kv_offset =
            (first_key * num_kv_heads + head / (num_heads / num_kv_heads)) * head_dim;
        const ReferenceHead reference{keys.data() + kv_offset,
                                      values.data() + kv_offset,
                                      num_kv_heads * head_dim,
                                      head_dim,
                                      options.scale,
                                      options.soft_cap,
                                      options.sinks ? sinks[head] : kNoSink};
        reference.attend(queries.data() + offset, begin, end, result.data() + offset);
      }
    }
    first_key += request.context_len;
  }
  return result;
}

inline std::vector<double> attention_reference(const AttentionInputs& inputs,
                                               const OptionChoice& choice = {}) {
  return attention_reference(inputs, options_of(inputs, choice));
}

}  // namespace vllm_metal::testing_support
