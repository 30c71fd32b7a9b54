// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/varlen_attention.h"

#include <memory>
#include <utility>
#include <vector>

#include "kernels/gpu/attention_plan.h"
#include "kernels/gpu/cache_kernels.h"
#include "kernels/gpu/gpu_primitive.h"
#include "kernels/gpu/step_plan.h"

namespace vllm_metal::gpu {

namespace {

// {queries, key cache, value cache, block_tables, query_starts, context_lens, sinks, plan}
// -> attended queries
class VarlenAttention : public GpuPrimitive {
 public:
  VarlenAttention(std::shared_ptr<const StepPlan> plan, AttentionArguments arguments)
      : plan_(std::move(plan)), arguments_(arguments) {}

  const char* name() const override { return "VarlenAttention"; }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (int i = 1; i < 3; ++i) check_cache("varlen_attention", inputs[i]);
    const mx::array &queries = inputs[0], &keys = inputs[1];
    allocate(outputs[0], stream());
    if (outputs[0].size() == 0) return;
    arguments_.query_token_stride = queries.strides()[0];
    arguments_.query_head_stride = queries.strides()[1];
    arguments_.cache_row_stride = int64_t{keys.shape(1)} * keys.shape(2);
    arguments_.num_heads = queries.shape(1);
    arguments_.num_kv_heads = keys.shape(1);
    arguments_.blocks_per_request = inputs[3].shape(1);
    prefill(inputs, outputs[0]);
    decode(inputs, outputs[0]);
    watch(stream());
  }

 private:
  const AttentionPlan& lists() const { return plan_->lists; }

  // Arguments 0 to 6 of both kernels.
  static KernelLaunch with_inputs(KernelLaunch kernel, const std::vector<mx::array>& inputs) {
    kernel.reads(inputs[0]).uses_cache(inputs[1]).uses_cache(inputs[2]);
    for (int i = 3; i < 7; ++i) kernel.reads(inputs[i]);
    return kernel;
  }

  void prefill(const std::vector<mx::array>& inputs, const mx::array& output) {
    const KernelUse use = prefill_kernel(inputs[0].dtype(), inputs[0].shape(2));
    launch_list(plan_->tiles_offset, lists().tiles.size(), sizeof(PrefillTile),
                arguments_.num_kv_heads, [&](size_t offset) {
                  KernelLaunch kernel = with_inputs(KernelLaunch(use), inputs);
                  return kernel.reads(inputs[7], offset).writes(output).value(arguments_);
                });
  }

  void decode(const std::vector<mx::array>& inputs, const mx::array& output) {
    const int head_dim = inputs[0].shape(2);
    const int group_size = arguments_.num_heads / arguments_.num_kv_heads;
    const int heads = decode_heads(group_size, head_dim);
    const bool has_parts = lists().num_partials > 0;
    const int num_partials = lists().num_partials;
    // Unused where no query has parts, but an argument all the same.
    const mx::array outputs =
        has_parts ? scratch({num_partials, arguments_.num_heads, head_dim}) : output;
    const mx::array sums = has_parts ? scratch({num_partials, arguments_.num_heads, 2}) : output;
    const KernelUse use = decode_kernel(inputs[0].dtype(), head_dim, heads);
    launch_list(plan_->works_offset, lists().works.size(), sizeof(DecodeWork),
                int64_t{arguments_.num_kv_heads} * ((group_size + heads - 1) / heads),
                [&](size_t offset) {
                  KernelLaunch kernel = with_inputs(KernelLaunch(use), inputs);
                  kernel.reads(inputs[7], offset).writes(output).value(arguments_);
                  return kernel.writes(outputs).writes(sums);
                });
    if (!has_parts) return;
    merge(inputs, outputs, sums, output);
    hold(outputs, stream());
    hold(sums, stream());
  }

  void merge(const std::vector<mx::array>& inputs, const mx::array& outputs, const mx::array& sums,
             const mx::array& output) {
    const KernelUse use = merge_kernel(inputs[0].dtype(), inputs[0].shape(2));
    launch_list(plan_->merges_offset, lists().merges.size(), sizeof(MergeWork),
                arguments_.num_heads, [&](size_t offset) {
                  KernelLaunch kernel(use);
                  kernel.reads(outputs).reads(sums).reads(inputs[6]).reads(inputs[7], offset);
                  return kernel.writes(output).value(arguments_);
                });
  }

  mx::array scratch(mx::Shape shape) {
    mx::array array(std::move(shape), mx::float32, nullptr, {});
    allocate(array, stream());
    return array;
  }

  std::shared_ptr<const StepPlan> plan_;
  AttentionArguments arguments_;
};

}  // namespace

bool fallback_is_faster(const mx::array& queries, const BatchLayout& layout,
                        const AttentionOptions& options) {
  if (kernel_target() != KernelTarget::kCuda || queries.dtype() == mx::float32 || !options.plain())
    return false;
  for (int request = 0; request < layout.num_requests(); ++request) {
    if (layout.query_starts[request + 1] - layout.query_starts[request] > kMaxDecodeQueries)
      return true;
  }
  return false;
}

mx::array varlen_attention(const mx::array& queries, const KVView& view,
                           const AttentionOptions& options) {
  const BatchLayout& layout = view.layout;
  auto plan = plan_of(layout, queries.shape(1) / view.keys.shape(1), options.sliding_window);
  AttentionArguments arguments{};  // eval_gpu fills in shapes and strides
  arguments.block_size = layout.block_size;
  arguments.scale = options.scale;
  arguments.softcap = options.soft_cap;
  arguments.window = options.sliding_window;
  arguments.has_sinks = options.sinks ? 1 : 0;
  const mx::array list = plan->array;
  return mx::array(
      queries.shape(), queries.dtype(),
      std::make_shared<VarlenAttention>(std::move(plan), arguments),
      {mx::contiguous(queries), view.keys, view.values, layout.block_tables_array,
       layout.query_starts_array, layout.context_lens_array,
       options.sinks ? mx::contiguous(*options.sinks) : layout.context_lens_array, list});
}

}  // namespace vllm_metal::gpu
