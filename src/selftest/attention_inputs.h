// SPDX-License-Identifier: Apache-2.0
// Batches for varlen_attention: the same tokens laid out in any kind of cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/kv_view.h"
#include "kernels/varlen_attention.h"
#include "selftest/numbers.h"

namespace vllm_metal::selftest {

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

}  // namespace vllm_metal::selftest
