// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "common/mlx.h"
#include "kernels/gpu/attention_plan.h"
#include "kernels/kv_view.h"

namespace vllm_metal::gpu {

// The plan of a step's attention and the same as an array on the device: made for the first layer,
// kept with the layout for the others.
struct StepPlan {
  StepPlan(const BatchLayout& layout, int group_size, int sliding_window);

  int group_size;
  int sliding_window;
  AttentionPlan lists;
  size_t tiles_offset, works_offset, merges_offset;  // in bytes of `array`
  mx::array array;                                   // int32 [words], the lists
};

std::shared_ptr<const StepPlan> plan_of(const BatchLayout& layout, int group_size,
                                        int sliding_window);

}  // namespace vllm_metal::gpu
