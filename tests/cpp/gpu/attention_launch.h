// SPDX-License-Identifier: Apache-2.0
// Runs the attention kernels over a batch in the harness, as a host would launch them.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "gpu/kernel_sources.h"
#include "kernels/attention_batch.h"

namespace gpu_harness {

namespace gpu = vllm_metal::gpu;
using vllm_metal::AttentionOptions;
using vllm_metal::testing_support::AttentionInputs;
using vllm_metal::testing_support::HeadShape;
using vllm_metal::testing_support::PlacedBatch;
using vllm_metal::testing_support::RequestShape;

// Which kernels take a batch.
enum class Way {
  kPrefill,       // with matrices
  kPlainPrefill,  // with plain arithmetic
  kDecode,
  kMixed,  // decode for requests of few queries, prefill for the others
};

// What a host plans for a step.
struct AttentionPlan {
  std::vector<gpu::PrefillTile> tiles;
  std::vector<gpu::DecodeWork> works;
  std::vector<gpu::MergeWork> merges;
  int num_partials = 0;
};

struct PlanOptions {
  Way way;
  int split = 128;          // keys of a decode work at most
  bool skip_unseen = true;  // leaves splits out that lie before the window
};

inline void plan_decode(AttentionPlan& plan, const PlanOptions& how, int window, int request,
                        int query, int token, int end) {
  const int first = how.skip_unseen && window > 0 ? std::max(0, end - window) : 0;
  const int begin = first / how.split * how.split;
  const int count = (end - begin + how.split - 1) / how.split;
  for (int i = 0; i < count; ++i) {
    const int from = begin + i * how.split;
    plan.works.push_back({request, query, from, std::min(end, from + how.split),
                          count == 1 ? -1 : plan.num_partials + i});
  }
  if (count == 1) return;
  plan.merges.push_back({token, plan.num_partials, count});
  plan.num_partials += count;
}

inline AttentionPlan plan_batch(const std::vector<RequestShape>& requests, int group_size,
                                int window, const PlanOptions& how) {
  constexpr int kFewQueries = 2;
  AttentionPlan plan;
  int token = 0;
  for (int r = 0; r < static_cast<int>(requests.size()); ++r) {
    const auto [context_len, num_queries] = requests[r];
    const bool decode =
        how.way == Way::kDecode || (how.way == Way::kMixed && num_queries <= kFewQueries);
    const int rows = decode ? 0 : num_queries * group_size;
    for (int row = 0; row < rows; row += gpu::kPrefillRows)
      plan.tiles.push_back({r, row, std::min<int>(gpu::kPrefillRows, rows - row), 0});
    for (int query = 0; decode && query < num_queries; ++query)
      plan_decode(plan, how, window, r, query, token + query,
                  context_len - num_queries + query + 1);
    token += num_queries;
  }
  return plan;
}

template <typename T>
std::vector<T> elements_of(const mlx::core::array& x) {
  std::vector<T> result;
  for (double value : vllm_metal::testing_support::values_of(x))
    result.push_back(T(static_cast<float>(value)));
  return result;
}

// The buffers of one call.
template <typename T, int kHeadDim>
class AttentionLaunch {
 public:
  AttentionLaunch(const AttentionInputs& inputs, const PlacedBatch& batch,
                  const AttentionOptions& options)
      : num_kv_heads_(inputs.keys.shape(1)),
        group_size_(inputs.queries.shape(1) / num_kv_heads_),
        queries_("queries", elements_of<T>(inputs.queries)),
        keys_("key_cache", elements_of<T>(fill_cache(batch, inputs.keys))),
        values_("value_cache", elements_of<T>(fill_cache(batch, inputs.values))),
        tables_("block_tables", batch.layout.block_tables),
        starts_("query_starts", batch.layout.query_starts),
        lens_("context_lens", batch.layout.context_lens),
        sinks_("sinks", options.sinks ? elements_of<float>(*options.sinks) : std::vector{0.0f}),
        outputs_("outputs", std::vector<T>(inputs.queries.size(), T(NAN))) {
    arguments_.query_token_stride = int64_t{inputs.queries.shape(1)} * kHeadDim;
    arguments_.query_head_stride = kHeadDim;
    arguments_.cache_row_stride = int64_t{num_kv_heads_} * kHeadDim;
    arguments_.num_heads = inputs.queries.shape(1);
    arguments_.num_kv_heads = num_kv_heads_;
    arguments_.block_size = batch.layout.block_size;
    arguments_.blocks_per_request = batch.layout.blocks_per_request();
    arguments_.scale = options.scale;
    arguments_.softcap = options.soft_cap;
    arguments_.window = options.sliding_window;
    arguments_.has_sinks = options.sinks ? 1 : 0;
  }

  // Reads queries that lie otherwise.
  void set_queries(std::vector<T> elements, int64_t token_stride, int64_t head_stride) {
    queries_.assign(std::move(elements));
    arguments_.query_token_stride = token_stride;
    arguments_.query_head_stride = head_stride;
  }

  template <int kHeads>
  std::vector<double> run(const AttentionPlan& plan, Way way, unsigned seed) {
    if (!plan.tiles.empty()) {
      if (way == Way::kPlainPrefill)
        prefill<false>(plan, seed);
      else
        prefill<true>(plan, seed);
    }
    if (!plan.works.empty()) decode<kHeads>(plan, seed);
    std::vector<double> result;
    for (const T& value : outputs_.values()) result.push_back(float(value));
    return result;
  }

 private:
  template <bool kMatrix>
  void prefill(const AttentionPlan& plan, unsigned seed) {
    DeviceBuffer<gpu::PrefillTile> tiles("tiles", plan.tiles);
    const auto work = tiles.input();
    const auto output = outputs_.output();
    launch({unsigned(num_kv_heads_), unsigned(plan.tiles.size()), gpu::kPrefillThreads}, seed, [&] {
      kernels::attention_prefill<T, kHeadDim, kMatrix>(
          queries_.input(), keys_.input(), values_.input(), tables_.input(), starts_.input(),
          lens_.input(), sinks_.input(), work, output, arguments_);
    });
  }

  template <int kHeads>
  void decode(const AttentionPlan& plan, unsigned seed) {
    const size_t num_partials = size_t(plan.num_partials) * arguments_.num_heads;
    DeviceBuffer<gpu::DecodeWork> works("works", plan.works);
    DeviceBuffer<float> partials("partial_outputs", std::vector<float>(num_partials * kHeadDim));
    DeviceBuffer<float> sums("partial_sums", std::vector<float>(num_partials * 2));
    const auto work = works.input();
    const auto output = outputs_.output();
    const auto partial_outputs = partials.output();
    const auto partial_sums = sums.output();
    const int parts = (group_size_ + kHeads - 1) / kHeads;
    launch({unsigned(num_kv_heads_ * parts), unsigned(plan.works.size()), gpu::kDecodeThreads},
           seed, [&] {
             kernels::attention_decode<T, kHeadDim, kHeads>(
                 queries_.input(), keys_.input(), values_.input(), tables_.input(), starts_.input(),
                 lens_.input(), sinks_.input(), work, output, arguments_, partial_outputs,
                 partial_sums);
           });
    if (plan.merges.empty()) return;
    DeviceBuffer<gpu::MergeWork> merges("merges", plan.merges);
    const auto merge = merges.input();
    const auto merged = outputs_.output();
    launch({unsigned(arguments_.num_heads), unsigned(plan.merges.size()), gpu::kMergeThreads}, seed,
           [&] {
             kernels::attention_merge<T, kHeadDim>(partials.input(), sums.input(), sinks_.input(),
                                                   merge, merged, arguments_);
           });
  }

  int num_kv_heads_, group_size_;
  DeviceBuffer<T> queries_, keys_, values_;
  DeviceBuffer<int> tables_, starts_, lens_;
  DeviceBuffer<float> sinks_;
  DeviceBuffer<T> outputs_;
  gpu::AttentionArguments arguments_{};
};

}  // namespace gpu_harness
