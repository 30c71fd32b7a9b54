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

// softmax(scale * query · keys) · values of one query over the first `num_keys` of `keys`, which
// lie `stride` apart.
inline void attend_reference(const double* query, const double* keys, const double* values,
                             int num_keys, int stride, int head_dim, double scale, double* out) {
  std::vector<double> weights(num_keys);
  double highest = -std::numeric_limits<double>::infinity();
  for (int key = 0; key < num_keys; ++key) {
    weights[key] = scale * std::inner_product(query, query + head_dim, keys + key * stride, 0.0);
    highest = std::max(highest, weights[key]);
  }
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - highest);
  for (int d = 0; d < head_dim; ++d) {
    double total = 0;
    for (int key = 0; key < num_keys; ++key) total += weights[key] * values[key * stride + d];
    out[d] = total / sum;
  }
}

inline std::vector<double> attention_reference(const AttentionInputs& inputs, float scale) {
  const int num_heads = inputs.queries.shape(1), head_dim = inputs.queries.shape(2);
  const int num_kv_heads = inputs.keys.shape(1);
  const auto queries = values_of(inputs.queries);
  const auto keys = values_of(inputs.keys), values = values_of(inputs.values);
  std::vector<double> result(queries.size());
  size_t query = 0, first_key = 0;
  for (const auto& request : inputs.requests) {
    for (int i = 0; i < request.num_queries; ++i, ++query) {
      for (int head = 0; head < num_heads; ++head) {
        const size_t offset = (query * num_heads + head) * head_dim;
        const size_t kv_offset =
            (first_key * num_kv_heads + head / (num_heads / num_kv_heads)) * head_dim;
        attend_reference(queries.data() + offset, keys.data() + kv_offset,
                         values.data() + kv_offset,
                         request.context_len - request.num_queries + i + 1, num_kv_heads * head_dim,
                         head_dim, scale, result.data() + offset);
      }
    }
    first_key += request.context_len;
  }
  return result;
}

}  // namespace vllm_metal::testing_support
