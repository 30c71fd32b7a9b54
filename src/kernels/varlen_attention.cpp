// SPDX-License-Identifier: Apache-2.0
#include "kernels/varlen_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "common/text.h"
#include "kernels/checks.h"
#include "kernels/cpu/varlen_attention.h"
#include "kernels/device_kernels.h"
#include "kernels/gpu/attention_plan.h"
#include "kernels/gpu/varlen_attention.h"

namespace vllm_metal {

namespace {

constexpr const char* kOp = "varlen_attention";

void check_shapes(const mx::array& queries, const KVView& view) {
  const mx::array& keys = view.keys;
  check_caches(kOp, keys, view.values);
  if (queries.ndim() != 3 || queries.shape(0) != view.layout.num_tokens() ||
      queries.shape(2) != keys.shape(2)) {
    throw std::invalid_argument(text("[varlen_attention] queries must have shape (",
                                     view.layout.num_tokens(), ",num_heads,", keys.shape(2),
                                     ") but have ", queries.shape(), "."));
  }
  if (keys.shape(1) < 1 || queries.shape(1) % keys.shape(1) != 0) {
    throw std::invalid_argument(
        text("[varlen_attention] the number of query heads must be a multiple of ", keys.shape(1),
             ", the number of key heads, but is ", queries.shape(1), "."));
  }
  if (view.layout.block_size > 0 && keys.shape(0) % view.layout.block_size != 0) {
    throw std::invalid_argument(text("[varlen_attention] the cache must have whole blocks of ",
                                     view.layout.block_size, " rows but has ", keys.shape(0),
                                     " rows."));
  }
  check_floating(kOp, "queries", queries);
  check_same_dtype(kOp, "queries", queries, "the key cache", keys);
}

void check_options(const mx::array& queries, const AttentionOptions& options) {
  if (options.sliding_window < 0) {
    throw std::invalid_argument(
        text("[varlen_attention] sliding_window must be positive, or 0 for all keys, but is ",
             options.sliding_window, "."));
  }
  if (!(options.soft_cap >= 0) || std::isinf(options.soft_cap)) {
    throw std::invalid_argument(
        text("[varlen_attention] soft_cap must be positive, or 0 for none, but is ",
             options.soft_cap, "."));
  }
  if (!options.sinks) return;
  check_shape(kOp, "sinks", *options.sinks, {queries.shape(1)});
  if (options.sinks->dtype() != mx::float32) {
    throw std::invalid_argument(
        text("[varlen_attention] sinks must be float32 but is ", options.sinks->dtype(), "."));
  }
}

void check_request(const BatchLayout& layout, int request) {
  const int num_queries = layout.num_queries(request);
  if (num_queries < 0 || num_queries > layout.context_lens[request]) {
    throw std::invalid_argument(text("[varlen_attention] request ", request, " has ", num_queries,
                                     " queries, which must lie in [0, ",
                                     layout.context_lens[request], "], its context_len."));
  }
}

// The first cached token that some query of the request sees.
int first_key_of(const BatchLayout& layout, int request, int sliding_window) {
  if (sliding_window == 0) return 0;
  return std::max(0,
                  layout.context_lens[request] - layout.num_queries(request) + 1 - sliding_window);
}

// That every row which request `request` reads, those of tokens from `first_key` on, is one of the
// cache's.
void check_rows(const BatchLayout& layout, int request, int first_key, int64_t num_rows) {
  const int64_t context_len = layout.context_lens[request];
  const int32_t* table =
      layout.block_tables.data() + static_cast<size_t>(request) * layout.blocks_per_request();
  const bool contiguous = layout.block_size == 0;
  const int64_t num_blocks =
      contiguous ? 1 : (context_len + layout.block_size - 1) / layout.block_size;
  if (first_key >= context_len) return;
  if (num_blocks > layout.blocks_per_request()) {
    throw std::invalid_argument(text("[varlen_attention] request ", request, " has ", context_len,
                                     " cached tokens, ", num_blocks, " blocks, but block_tables ",
                                     "has room for ", layout.blocks_per_request(), "."));
  }
  const int64_t first_block = contiguous ? 0 : first_key / layout.block_size;
  const auto [lowest, highest] = std::minmax_element(table + first_block, table + num_blocks);
  const int64_t end =
      contiguous ? *highest + context_len : (*highest + int64_t{1}) * layout.block_size;
  if (*lowest < 0 || end > num_rows) {
    throw std::invalid_argument(text(
        "[varlen_attention] block_tables of request ", request, " must name rows in [0, ", num_rows,
        ") but reach from ", contiguous ? "row " : "block ", *lowest, " to row ", end - 1, "."));
  }
}

void check_arguments(const mx::array& queries, const KVView& view,
                     const AttentionOptions& options) {
  check_shapes(queries, view);
  check_options(queries, options);
  for (int request = 0; request < view.layout.num_requests(); ++request) {
    check_request(view.layout, request);
    check_rows(view.layout, request, first_key_of(view.layout, request, options.sliding_window),
               view.keys.shape(0));
  }
}

// Tokens [begin, end) of packed queries.
mx::array tokens_of(const mx::array& x, int begin, int end) {
  return mx::slice(x, {begin, 0, 0}, {end, x.shape(1), x.shape(2)});
}

// The cached rows of a request in the order of its tokens, those from `first` on:
// [context_len - first, num_kv_heads, head_dim].
mx::array cached_rows(const mx::array& cache, const BatchLayout& layout, int request, int first) {
  const int context_len = layout.context_lens[request];
  if (layout.block_size == 0) {
    const int row = static_cast<int>(layout.row(request, 0));
    return tokens_of(cache, row + first, row + context_len);
  }
  const int first_block = first / layout.block_size;
  const int num_blocks = (context_len + layout.block_size - 1) / layout.block_size;
  const mx::array table = mx::flatten(
      mx::slice(layout.block_tables_array, {request, first_block}, {request + 1, num_blocks}));
  const mx::array blocks = mx::take(mx::unflatten(cache, 0, {-1, layout.block_size}), table, 0);
  const int skipped = first_block * layout.block_size;
  return tokens_of(mx::flatten(blocks, 0, 1), first - skipped, context_len - skipped);
}

// [tokens, heads, head_dim] -> [1, heads, tokens, head_dim]
mx::array heads_first(const mx::array& x) {
  return mx::expand_dims(mx::transpose(x, {1, 0, 2}), 0);
}

// MLX's own attention of one request: causal, and nothing else.
//   queries       [num_queries, num_heads, head_dim]
//   keys, values  [num_keys, num_kv_heads, head_dim]
mx::array attend_plainly(const mx::array& queries, const mx::array& keys, const mx::array& values,
                         float scale) {
  // "causal" lets the last query see the last key, which is what the last tokens need.
  const mx::array attended = mx::fast::scaled_dot_product_attention(
      heads_first(queries), heads_first(keys), heads_first(values), scale,
      queries.shape(0) == 1 ? "" : "causal");
  return mx::transpose(mx::squeeze(attended, 0), {1, 0, 2});
}

// Which of the last `num_keys` tokens each of the last `num_queries` sees: bool [queries, keys].
mx::array visible_keys(int num_queries, int num_keys, int sliding_window) {
  const mx::array query = mx::expand_dims(mx::arange(num_keys - num_queries, num_keys), 1);
  const mx::array key = mx::expand_dims(mx::arange(num_keys), 0);
  const mx::array causal = mx::less_equal(key, query);
  if (sliding_window == 0) return causal;
  return mx::logical_and(
      causal, mx::greater(key, mx::subtract(query, mx::array(sliding_window, mx::int32))));
}

// The same with all options, in float32.
mx::array attend(const mx::array& queries, const mx::array& keys, const mx::array& values,
                 const AttentionOptions& options) {
  const int num_queries = queries.shape(0), num_keys = keys.shape(0);
  const int num_heads = queries.shape(1), num_kv_heads = keys.shape(1);
  // [num_kv_heads, queries of a key head or 1, tokens, head_dim]
  const auto grouped = [&](const mx::array& x) {
    const mx::array heads = mx::transpose(mx::astype(x, mx::float32), {1, 0, 2});
    return mx::unflatten(heads, 0, {num_kv_heads, -1});
  };
  mx::array scores =
      mx::matmul(grouped(queries) * options.scale, mx::swapaxes(grouped(keys), -1, -2));
  if (options.soft_cap > 0) scores = mx::tanh(scores / options.soft_cap) * options.soft_cap;
  scores = mx::where(visible_keys(num_queries, num_keys, options.sliding_window), scores,
                     mx::array(-std::numeric_limits<float>::infinity()));
  if (options.sinks) {
    const mx::array sinks = mx::reshape(*options.sinks, {num_kv_heads, -1, 1, 1});
    scores = mx::concatenate(
        {scores, mx::broadcast_to(sinks, {num_kv_heads, num_heads / num_kv_heads, num_queries, 1})},
        -1);
  }
  mx::array weights = mx::softmax(scores, -1);
  if (options.sinks) {
    weights = mx::slice(weights, {0, 0, 0, 0},
                        {num_kv_heads, num_heads / num_kv_heads, num_queries, num_keys});
  }
  const mx::array attended = mx::flatten(mx::matmul(weights, grouped(values)), 0, 1);
  return mx::astype(mx::transpose(attended, {1, 0, 2}), queries.dtype());
}

}  // namespace

mx::array varlen_attention(const mx::array& queries, const KVView& view,
                           const AttentionOptions& options) {
  check_arguments(queries, view, options);
  if (use_cpu_kernels()) return cpu::varlen_attention(queries, view, options);
  if (use_gpu_cache_kernels(view.keys) && gpu::has_attention_kernel(queries.shape(2)) &&
      !gpu::fallback_is_faster(queries, view.layout, options))
    return gpu::varlen_attention(queries, view, options);
  return varlen_attention_fallback(queries, view, options);
}

mx::array varlen_attention_fallback(const mx::array& queries, const KVView& view,
                                    const AttentionOptions& options) {
  check_arguments(queries, view, options);
  const BatchLayout& layout = view.layout;
  std::vector<mx::array> outputs;
  for (int request = 0; request < layout.num_requests(); ++request) {
    const int begin = layout.query_starts[request];
    const int end = layout.query_starts[request + 1];
    if (begin == end) continue;
    const int first_key = first_key_of(layout, request, options.sliding_window);
    const mx::array keys = cached_rows(view.keys, layout, request, first_key);
    const mx::array values = cached_rows(view.values, layout, request, first_key);
    const mx::array some = tokens_of(queries, begin, end);
    outputs.push_back(options.plain() ? attend_plainly(some, keys, values, options.scale)
                                      : attend(some, keys, values, options));
  }
  if (outputs.empty()) return mx::zeros(queries.shape(), queries.dtype());
  return outputs.size() == 1 ? outputs[0] : mx::concatenate(outputs, 0);
}

}  // namespace vllm_metal
