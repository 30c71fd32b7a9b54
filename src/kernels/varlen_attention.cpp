// SPDX-License-Identifier: Apache-2.0
#include "kernels/varlen_attention.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "common/text.h"
#include "kernels/checks.h"
#include "kernels/cpu/varlen_attention.h"
#include "kernels/device_kernels.h"

namespace vllm_metal {

namespace {

constexpr const char* kOp = "varlen_attention";

void check_shapes(const mx::array& queries, const KVView& view) {
  const mx::array& keys = view.keys;
  if (keys.ndim() != 3 || view.values.shape() != keys.shape()) {
    throw std::invalid_argument(
        text("[varlen_attention] the key cache and the value cache must have one shape, (num_rows,",
             "num_kv_heads,head_dim), but have ", keys.shape(), " and ", view.values.shape(), "."));
  }
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
  check_same_dtype(kOp, "the value cache", view.values, "the key cache", keys);
}

void check_request(const BatchLayout& layout, int request) {
  const int num_queries = layout.query_starts[request + 1] - layout.query_starts[request];
  if (num_queries < 0 || num_queries > layout.context_lens[request]) {
    throw std::invalid_argument(text("[varlen_attention] request ", request, " has ", num_queries,
                                     " queries, which must lie in [0, ",
                                     layout.context_lens[request], "], its context_len."));
  }
}

// That every row which request `request` reads is one of the cache's.
void check_rows(const BatchLayout& layout, int request, int64_t num_rows) {
  const int64_t context_len = layout.context_lens[request];
  const int32_t* table =
      layout.block_tables.data() + static_cast<size_t>(request) * layout.blocks_per_request();
  const bool contiguous = layout.block_size == 0;
  const int64_t num_blocks =
      contiguous ? 1 : (context_len + layout.block_size - 1) / layout.block_size;
  if (context_len == 0) return;
  if (num_blocks > layout.blocks_per_request()) {
    throw std::invalid_argument(text("[varlen_attention] request ", request, " has ", context_len,
                                     " cached tokens, ", num_blocks, " blocks, but block_tables ",
                                     "has room for ", layout.blocks_per_request(), "."));
  }
  const auto [lowest, highest] = std::minmax_element(table, table + num_blocks);
  const int64_t end =
      contiguous ? *highest + context_len : (*highest + int64_t{1}) * layout.block_size;
  if (*lowest < 0 || end > num_rows) {
    throw std::invalid_argument(text(
        "[varlen_attention] block_tables of request ", request, " must name rows in [0, ", num_rows,
        ") but reach from ", contiguous ? "row " : "block ", *lowest, " to row ", end - 1, "."));
  }
}

void check_arguments(const mx::array& queries, const KVView& view) {
  check_shapes(queries, view);
  for (int request = 0; request < view.layout.num_requests(); ++request) {
    check_request(view.layout, request);
    check_rows(view.layout, request, view.keys.shape(0));
  }
}

// The cached rows of a request in the order of its tokens: [context_len, num_kv_heads, head_dim].
mx::array cached_rows(const mx::array& cache, const BatchLayout& layout, int request) {
  const int context_len = layout.context_lens[request];
  const int heads = cache.shape(1);
  const int head_dim = cache.shape(2);
  if (layout.block_size == 0) {
    const int first = static_cast<int>(layout.row(request, 0));
    return mx::slice(cache, {first, 0, 0}, {first + context_len, heads, head_dim});
  }
  const int num_blocks = (context_len + layout.block_size - 1) / layout.block_size;
  const mx::array table =
      mx::flatten(mx::slice(layout.block_tables_array, {request, 0}, {request + 1, num_blocks}));
  const mx::array blocks = mx::take(mx::unflatten(cache, 0, {-1, layout.block_size}), table, 0);
  return mx::slice(mx::flatten(blocks, 0, 1), {0, 0, 0}, {context_len, heads, head_dim});
}

// [tokens, heads, head_dim] -> [1, heads, tokens, head_dim]
mx::array heads_first(const mx::array& x) {
  return mx::expand_dims(mx::transpose(x, {1, 0, 2}), 0);
}

}  // namespace

mx::array varlen_attention(const mx::array& queries, const KVView& view, float scale) {
  check_arguments(queries, view);
  if (use_cpu_kernels()) return cpu::varlen_attention(queries, view, scale);
  return varlen_attention_fallback(queries, view, scale);
}

mx::array varlen_attention_fallback(const mx::array& queries, const KVView& view, float scale) {
  check_arguments(queries, view);
  const BatchLayout& layout = view.layout;
  const int num_heads = queries.shape(1);
  const int head_dim = queries.shape(2);
  std::vector<mx::array> outputs;
  for (int request = 0; request < layout.num_requests(); ++request) {
    const int begin = layout.query_starts[request];
    const int end = layout.query_starts[request + 1];
    if (begin == end) continue;
    // "causal" lets the last query see the last key, which is what the last tokens need.
    const mx::array attended = mx::fast::scaled_dot_product_attention(
        heads_first(mx::slice(queries, {begin, 0, 0}, {end, num_heads, head_dim})),
        heads_first(cached_rows(view.keys, layout, request)),
        heads_first(cached_rows(view.values, layout, request)), scale,
        end - begin == 1 ? "" : "causal");
    outputs.push_back(mx::transpose(mx::squeeze(attended, 0), {1, 0, 2}));
  }
  if (outputs.empty()) return mx::zeros(queries.shape(), queries.dtype());
  return outputs.size() == 1 ? outputs[0] : mx::concatenate(outputs, 0);
}

}  // namespace vllm_metal
