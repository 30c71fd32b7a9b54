// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/varlen_attention.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/cpu_primitive.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd/attention.h"

namespace vllm_metal::cpu {

namespace {

// Everything the task needs, as plain pointers and numbers.
struct AttentionTask {
  AttentionBatch batch;
  AttentionTile tile;  // what all tiles have in common; pointers to the first query and row
  const int32_t* block_tables;  // [num_requests, blocks_per_request]
  int blocks_per_request;

  AttentionTile make_tile(const TileWork& work) const;
  void operator()() const;
};

int64_t bytes_of(ElementType type, int64_t elements) {
  return elements * (type == ElementType::kFloat32 ? 4 : 2);
}

// `base` moved on by so many elements.
const void* advanced(const void* base, ElementType type, int64_t elements) {
  return static_cast<const char*>(base) + bytes_of(type, elements);
}
void* advanced(void* base, ElementType type, int64_t elements) {
  return static_cast<char*>(base) + bytes_of(type, elements);
}

AttentionTile AttentionTask::make_tile(const TileWork& work) const {
  AttentionTile result = tile;
  const int64_t token = batch.query_starts[work.request] + work.first_query;
  const int64_t head = static_cast<int64_t>(work.first_kv_head) * batch.group_size;
  const int64_t cache_offset = static_cast<int64_t>(work.first_kv_head) * tile.head_dim;
  result.num_queries = work.num_queries;
  result.num_kv_heads = work.num_kv_heads;
  result.num_keys = work.num_keys - work.num_queries + 1;
  if (tile.sinks != nullptr) result.sinks = tile.sinks + head;
  result.queries =
      advanced(tile.queries, tile.type, token * tile.query_stride + head * tile.query_head_stride);
  result.output =
      advanced(tile.output, tile.type, token * tile.output_stride + head * tile.head_dim);
  result.keys = advanced(tile.keys, tile.type, cache_offset);
  result.values = advanced(tile.values, tile.type, cache_offset);
  result.block_table = block_tables + static_cast<int64_t>(work.request) * blocks_per_request;
  return result;
}

int num_rows_of(const TileWork& work, int group_size) {
  return work.num_kv_heads * work.num_queries * group_size;
}

// Where the states of tiles that are computed in parts begin: [num_tiles], and the total.
std::vector<int64_t> place_states(const AttentionPlan& plan, const AttentionKernels& kernels,
                                  int group_size, int head_dim) {
  std::vector<int64_t> begins{0};
  for (const TileWork& tile : plan.tiles) {
    const int64_t floats =
        tile.num_parts == 1
            ? 0
            : tile.num_parts * kernels.state_floats(num_rows_of(tile, group_size), head_dim);
    begins.push_back(begins.back() + floats);
  }
  return begins;
}

void AttentionTask::operator()() const {
  const AttentionKernels& kernels = VLLM_METAL_KERNELS_OF(current_isa(), attention_kernels);
  const AttentionPlan plan = plan_attention(batch, tile.head_dim, num_threads());
  const std::vector<int64_t> state_begins =
      place_states(plan, kernels, batch.group_size, tile.head_dim);
  AlignedFloats states(state_begins.back());

  const auto range_of = [&](const PartWork& part) -> TileRange {
    const TileWork& work = plan.tiles[part.tile];
    const int64_t begin = (work.first_key / kKeySpan + part.part) * kKeySpan;
    const int64_t end = work.num_parts == 1 ? work.num_keys : begin + kKeySpan;
    return {make_tile(work), begin, std::min(work.num_keys, end)};
  };
  // What a thread does after part i is most likely part i + 1.
  const auto run_part = [&](size_t i) {
    const PartWork& part = plan.parts[i];
    const TileWork& work = plan.tiles[part.tile];
    const TileRange range = range_of(part);
    std::optional<TileRange> next;
    if (i + 1 < plan.parts.size()) next = range_of(plan.parts[i + 1]);
    const int num_rows = num_rows_of(work, batch.group_size);
    const int64_t state_floats = kernels.state_floats(num_rows, tile.head_dim);
    const bool is_whole = work.num_parts == 1;
    const int64_t scratch_floats = kernels.scratch_floats(num_rows, tile.head_dim);
    float* scratch = thread_scratch((is_whole ? state_floats : 0) + scratch_floats);
    float* state = scratch + scratch_floats;
    if (!is_whole) state = states.data() + state_begins[part.tile] + part.part * state_floats;
    kernels.attend(range, next ? &*next : nullptr, state, scratch);
    if (is_whole) kernels.finish(range.tile, state, 1);
  };
  parallel_for(static_cast<int64_t>(plan.parts.size()), plan.grain,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) run_part(static_cast<size_t>(i));
               });

  for (size_t i = 0; i < plan.tiles.size(); ++i) {
    const TileWork& work = plan.tiles[i];
    if (work.num_parts > 1)
      kernels.finish(make_tile(work), states.data() + state_begins[i], work.num_parts);
  }
}

// {queries, keys, values, query_starts, context_lens, block_tables, and sinks where there are any}
// -> attended queries
class VarlenAttention : public CpuPrimitive {
 public:
  VarlenAttention(const AttentionOptions& options, int block_size)
      : scale_(options.scale),
        sliding_window_(options.sliding_window),
        soft_cap_(options.soft_cap),
        block_size_(block_size) {}

  const char* name() const override { return "VarlenAttention"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (int i = 1; i < 3; ++i) {
      if (!inputs[i].flags().row_contiguous)
        throw std::runtime_error("[varlen_attention] the caches must be row contiguous.");
    }
    allocate_output(outputs[0]);
    const mx::array queries = with_contiguous_last_dimension(inputs[0]);
    const mx::array& keys = inputs[1];
    AttentionTask task{};
    task.batch = {.num_requests = inputs[4].shape(0),
                  .query_starts = inputs[3].data<int32_t>(),
                  .context_lens = inputs[4].data<int32_t>(),
                  .num_kv_heads = keys.shape(1),
                  .group_size = queries.shape(1) / keys.shape(1),
                  .sliding_window = sliding_window_};
    task.tile = {.type = element_type_of(queries.dtype()),
                 .head_dim = queries.shape(2),
                 .num_queries = 0,
                 .num_kv_heads = 0,
                 .group_size = task.batch.group_size,
                 .scale = scale_,
                 .soft_cap = soft_cap_,
                 .sinks = inputs.size() > 6 ? row_contiguous(inputs[6]).data<float>() : nullptr,
                 .num_keys = 0,
                 .window = sliding_window_ == 0 ? kNoWindow : sliding_window_,
                 .queries = queries.data<void>(),
                 .query_stride = queries.strides()[0],
                 .query_head_stride = queries.strides()[1],
                 .output = outputs[0].data<void>(),
                 .output_stride = int64_t{queries.shape(1)} * queries.shape(2),
                 .keys = keys.data<void>(),
                 .values = inputs[2].data<void>(),
                 .cache_stride = int64_t{keys.shape(1)} * keys.shape(2),
                 .block_table = nullptr,
                 .block_size = block_size_};
    task.block_tables = inputs[5].data<int32_t>();
    task.blocks_per_request = inputs[5].shape(1);
    dispatch(task);
  }

 private:
  float scale_;
  int sliding_window_;
  float soft_cap_;
  int block_size_;
};

}  // namespace

mx::array varlen_attention(const mx::array& queries, const KVView& view,
                           const AttentionOptions& options) {
  const BatchLayout& layout = view.layout;
  std::vector<mx::array> inputs{queries,
                                view.keys,
                                view.values,
                                layout.query_starts_array,
                                layout.context_lens_array,
                                layout.block_tables_array};
  if (options.sinks) inputs.push_back(*options.sinks);
  return mx::array(queries.shape(), queries.dtype(),
                   std::make_shared<VarlenAttention>(options, layout.block_size),
                   std::move(inputs));
}

}  // namespace vllm_metal::cpu
