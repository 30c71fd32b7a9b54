// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu/step_plan.h"

#include "kernels/gpu/device.h"

namespace vllm_metal::gpu {

StepPlan::StepPlan(const BatchLayout& layout, int group_size_, int sliding_window_)
    : group_size(group_size_),
      sliding_window(sliding_window_),
      lists(plan_attention({layout.query_starts, layout.context_lens, group_size, sliding_window})),
      array(0) {
  const PackedPlan packed(lists);
  tiles_offset = packed.tiles_offset;
  works_offset = packed.works_offset;
  merges_offset = packed.merges_offset;
  array = lookup_array(packed.words, {static_cast<int>(packed.words.size())});
}

std::shared_ptr<const StepPlan> plan_of(const BatchLayout& layout, int group_size,
                                        int sliding_window) {
  for (const auto& plan : layout.gpu_plans) {
    if (plan->group_size == group_size && plan->sliding_window == sliding_window) return plan;
  }
  layout.gpu_plans.push_back(std::make_shared<StepPlan>(layout, group_size, sliding_window));
  return layout.gpu_plans.back();
}

}  // namespace vllm_metal::gpu
