// SPDX-License-Identifier: Apache-2.0
// Batches for the tests of varlen_attention: the same tokens laid out in any kind of cache, and
// their attention in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/kernel_test.h"
#include "kernels/kv_view.h"
#include "kernels/varlen_attention.h"

namespace vllm_metal::testing_support {

struct RequestShape {
  int context_len;
  int num_queries;
};

struct HeadShape {
  int num_heads;
  int num_kv_heads;
  int head_dim;
};

// The layout of `requests` in a cache of `num_rows` rows, at random places of it: whole blocks in
// shuffled order, or one range each with gaps between them (block_size 0).
struct PlacedBatch {
  BatchLayout layout;
  int num_rows;
};

inline std::vector<int32_t> query_starts_of(const std::vector<RequestShape>& requests) {
  std::vector<int32_t> starts{0};
  for (const auto& request : requests) starts.push_back(starts.back() + request.num_queries);
  return starts;
}

inline std::vector<int32_t> context_lens_of(const std::vector<RequestShape>& requests) {
  std::vector<int32_t> lens;
  for (const auto& request : requests) lens.push_back(request.context_len);
  return lens;
}

inline PlacedBatch place(const std::vector<RequestShape>& requests, int block_size,
                         unsigned seed = 1) {
  constexpr int kGap = 3;
  std::vector<int32_t> tables;
  int num_rows = kGap;
  if (block_size == 0) {
    for (const auto& request : requests) {
      tables.push_back(num_rows);
      num_rows += request.context_len + kGap;
    }
  } else {
    int num_blocks = 0, widest = 1;
    for (const auto& request : requests) {
      const int blocks = (request.context_len + block_size - 1) / block_size;
      num_blocks += blocks;
      widest = std::max(widest, blocks);
    }
    std::vector<int32_t> free(num_blocks + kGap);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), std::mt19937(seed));
    for (const auto& request : requests) {
      for (int block = 0; block < widest; ++block) {
        const bool used = block * block_size < request.context_len;
        tables.push_back(used ? free.back() : -1);
        if (used) free.pop_back();
      }
    }
    num_rows = (num_blocks + kGap) * block_size;
  }
  const auto starts = query_starts_of(requests);
  // Nothing is written here: the slots only have to be as many as the tokens.
  return {BatchLayout(starts, context_lens_of(requests), std::vector<int32_t>(starts.back(), 0),
                      tables, block_size),
          num_rows};
}

// A cache that holds `tokens` [sum of context_lens, num_kv_heads, head_dim], request after
// request, where the layout says. All other rows are NaN: reading one shows.
inline mx::array fill_cache(const PlacedBatch& batch, const mx::array& tokens) {
  const int row_size = tokens.shape(1) * tokens.shape(2);
  const auto values = values_of(tokens);
  std::vector<float> rows(static_cast<size_t>(batch.num_rows) * row_size,
                          std::numeric_limits<float>::quiet_NaN());
  size_t token = 0;
  for (int request = 0; request < batch.layout.num_requests(); ++request) {
    for (int i = 0; i < batch.layout.context_lens[request]; ++i, ++token)
      std::copy_n(values.begin() + token * row_size, row_size,
                  rows.begin() + batch.layout.row(request, i) * row_size);
  }
  mx::array cache = mx::astype(
      mx::array(rows.begin(), {batch.num_rows, tokens.shape(1), tokens.shape(2)}), tokens.dtype());
  mx::eval(cache);
  return cache;
}

// Queries, keys and values of a batch before they are placed in a cache.
struct AttentionInputs {
  std::vector<RequestShape> requests;
  mx::array queries;  // [num_tokens, num_heads, head_dim]
  mx::array keys;     // [sum of context_lens, num_kv_heads, head_dim]
  mx::array values;   // [sum of context_lens, num_kv_heads, head_dim]
};

inline AttentionInputs make_inputs(const std::vector<RequestShape>& requests,
                                   const HeadShape& heads, mx::Dtype dtype, unsigned seed = 1) {
  const auto lens = context_lens_of(requests);
  const int cached = std::accumulate(lens.begin(), lens.end(), 0);
  const int queries = query_starts_of(requests).back();
  // Wide enough that some keys matter much more than others.
  return {requests, random_array({queries, heads.num_heads, heads.head_dim}, dtype, seed, 2.0f),
          random_array({cached, heads.num_kv_heads, heads.head_dim}, dtype, seed + 1),
          random_array({cached, heads.num_kv_heads, heads.head_dim}, dtype, seed + 2)};
}

// What a case asks for beside the usual scale, head_dim^-0.5.
struct OptionChoice {
  int sliding_window = 0;
  float soft_cap = 0;
  bool sinks = false;
};

inline AttentionOptions options_of(const AttentionInputs& inputs, const OptionChoice& choice) {
  AttentionOptions options{
      .scale = 1 / std::sqrt(static_cast<float>(inputs.queries.shape(2))),
      .sliding_window = choice.sliding_window,
      .soft_cap = choice.soft_cap,
  };
  // Around the highest scores, so that some heads lose much to their sink and others little.
  if (choice.sinks)
    options.sinks = random_array({inputs.queries.shape(1)}, mx::float32, 77, 2.0f) + 2.0f;
  return options;
}

using AttentionOp = mx::array (*)(const mx::array&, const KVView&, const AttentionOptions&);

// The op on the inputs, placed in a cache as `batch` says.
inline mx::array attend(const AttentionInputs& inputs, const PlacedBatch& batch,
                        const OptionChoice& choice = {}, AttentionOp op = varlen_attention) {
  mx::array keys = fill_cache(batch, inputs.keys);
  mx::array values = fill_cache(batch, inputs.values);
  mx::array result = op(inputs.queries, {keys, values, batch.layout}, options_of(inputs, choice));
  mx::eval(result);
  return result;
}

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
