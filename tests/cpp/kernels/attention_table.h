// SPDX-License-Identifier: Apache-2.0
// Batches for the table of varlen_attention: up to 64 requests of up to 8192 tokens, in a cache
// that costs little to make. Its rows come from one bank of random numbers, requests share rows
// where they would be too many, and every row that no query sees is NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/text.h"
#include "kernels/attention_batch.h"
#include "kernels/number_bank.h"

namespace vllm_metal::testing_support {

struct AttentionCase {
  mx::Dtype dtype;
  HeadShape heads;
  int block_size;
  int length;  // of the longest request
  int batch;
  bool prefill;  // some requests have several queries
  OptionChoice options;
};

inline std::string text_of(const AttentionCase& c) {
  return text(c.dtype, ", ", c.heads.num_heads, "/", c.heads.num_kv_heads, " x ", c.heads.head_dim,
              ", blocks of ", c.block_size, ", ", c.batch, c.prefill ? " chunks" : " decodes",
              " of up to ", c.length, ", window ", c.options.sliding_window, ", cap ",
              c.options.soft_cap, c.options.sinks ? ", sinks" : "");
}

// A case, laid out.
class TableBatch {
 public:
  explicit TableBatch(const AttentionCase& c)
      : case_(c), bank_(NumberBank::of(c.dtype)), requests_(requests_of(c)), batch_(placed()) {
    const int64_t row = int64_t{c.heads.num_kv_heads} * c.heads.head_dim;
    const mx::Shape cache{batch_.num_rows, c.heads.num_kv_heads, c.heads.head_dim};
    keys = bank_.copy(cache, kKeys);
    values = bank_.copy(cache, kValues);
    hide_unseen_rows(row * static_cast<int64_t>(keys.itemsize()));
    queries =
        bank_.copy({batch_.layout.num_tokens(), c.heads.num_heads, c.heads.head_dim}, kQueries);
    options = {.scale = 1.5f / std::sqrt(static_cast<float>(c.heads.head_dim)),
               .sliding_window = c.options.sliding_window,
               .soft_cap = c.options.soft_cap};
    if (c.options.sinks) {
      options.sinks = random_array({c.heads.num_heads}, mx::float32, 77, 2.0f) + 2.0f;
      mx::eval(*options.sinks);
      sinks_ = values_of(*options.sinks);
    }
  }

  const BatchLayout& layout() const { return batch_.layout; }
  const std::vector<RequestShape>& requests() const { return requests_; }

  // The attention of query `i` of a request and a head in float64: [head_dim].
  std::vector<double> reference(int request, int i, int head) const {
    const auto [context_len, num_queries] = requests_[request];
    const HeadShape& heads = case_.heads;
    const int end = context_len - num_queries + i + 1;
    const int window = case_.options.sliding_window;
    const int begin = window == 0 ? 0 : std::max(0, end - window);
    const size_t dim = heads.head_dim;
    std::vector<double> query(dim), some_keys, some_values;
    const size_t token = batch_.layout.query_starts[request] + i;
    for (size_t d = 0; d < dim; ++d)
      query[d] = bank_.value(kQueries + (token * heads.num_heads + head) * dim + d);
    const size_t kv_head = head / (heads.num_heads / heads.num_kv_heads);
    for (int key = begin; key < end; ++key) {
      const size_t row = batch_.layout.row(request, key);
      const size_t first = (row * heads.num_kv_heads + kv_head) * dim;
      for (size_t d = 0; d < dim; ++d) {
        some_keys.push_back(bank_.value(kKeys + first + d));
        some_values.push_back(bank_.value(kValues + first + d));
      }
    }
    std::vector<double> result(dim);
    const ReferenceHead reference{some_keys.data(),
                                  some_values.data(),
                                  heads.head_dim,
                                  heads.head_dim,
                                  options.scale,
                                  options.soft_cap,
                                  sinks_.empty() ? kNoSink : sinks_[head]};
    reference.attend(query.data(), 0, end - begin, result.data());
    return result;
  }

  // The layout of one request alone.
  BatchLayout layout_of(int request) const {
    const BatchLayout& all = batch_.layout;
    const int width = all.blocks_per_request();
    const auto table = all.block_tables.begin() + static_cast<int64_t>(request) * width;
    const auto [context_len, num_queries] = requests_[request];
    return BatchLayout({0, num_queries}, {context_len}, std::vector<int32_t>(num_queries, 0),
                       {table, table + width}, all.block_size);
  }

  mx::array keys = mx::array(0);
  mx::array values = mx::array(0);
  mx::array queries = mx::array(0);
  AttentionOptions options{};

 private:
  // Where keys, values and queries begin in the bank.
  static constexpr size_t kKeys = 11, kValues = 400'009, kQueries = 700'001;
  static constexpr int kMaxRows = 9000;
  static constexpr int kMaxPairs = 1 << 16;  // of queries and keys, in all prefills of a batch

  static std::vector<RequestShape> requests_of(const AttentionCase& c) {
    const int most_queries = std::max(1, kMaxPairs / c.length / c.batch);
    std::vector<RequestShape> requests;
    for (int i = 0; i < c.batch; ++i) {
      const int length = 1 + (c.length - 1) * (c.batch - i) / c.batch;
      const bool decode = !c.prefill || i % 3 == 1;
      requests.push_back({length, decode ? 1 : std::min(length, most_queries)});
    }
    return requests;
  }

  // Blocks of each request in random order, taken from all in turn; or a range, also in turn.
  PlacedBatch placed() const {
    const int unit = std::max(1, case_.block_size);
    const auto units_of = [&](int tokens) { return (tokens + unit - 1) / unit; };
    int total = 0;
    for (const auto& request : requests_) total += units_of(request.context_len) + 1;
    total = std::clamp(total, units_of(case_.length), units_of(kMaxRows));
    std::vector<int32_t> blocks(total + 2);  // the last ones are nobody's
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(case_.length));
    std::vector<int32_t> tables;
    int next = 0;
    const int width = case_.block_size == 0 ? 1 : units_of(case_.length);
    for (const auto& request : requests_) {
      const int count = units_of(request.context_len);
      if (case_.block_size == 0) {
        if (next + count > total) next = 0;
        tables.push_back(next + 1);
        next += count + 1;
        continue;
      }
      for (int i = 0; i < width; ++i) tables.push_back(i < count ? blocks[(next + i) % total] : -1);
      next += count;
    }
    const auto starts = query_starts_of(requests_);
    return {BatchLayout(starts, context_lens_of(requests_), std::vector<int32_t>(starts.back(), 0),
                        tables, case_.block_size),
            static_cast<int>(blocks.size()) * unit};
  }

  void hide_unseen_rows(int64_t row_bytes) {
    std::vector<bool> seen(batch_.num_rows);
    for (int r = 0; r < static_cast<int>(requests_.size()); ++r) {
      const auto [context_len, num_queries] = requests_[r];
      const int window = case_.options.sliding_window;
      const int first = window == 0 ? 0 : std::max(0, context_len - num_queries + 1 - window);
      for (int i = first; i < context_len; ++i) seen[batch_.layout.row(r, i)] = true;
    }
    for (int row = 0; row < batch_.num_rows; ++row) {
      if (seen[row]) continue;
      for (mx::array* cache : {&keys, &values})  // NaN in each of the dtypes
        std::memset(cache->data<char>() + row * row_bytes, 0xff, row_bytes);
    }
  }

  AttentionCase case_;
  const NumberBank& bank_;
  std::vector<RequestShape> requests_;
  PlacedBatch batch_;
  std::vector<double> sinks_;
};

}  // namespace vllm_metal::testing_support
