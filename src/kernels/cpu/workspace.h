// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "common/mlx.h"
#include "kernels/cpu/scratch.h"

namespace vllm_metal::cpu {

// At least `floats` of memory for one task of a stream, which the task holds while it runs. All
// tasks of a stream are given the same, as they run one after the other; it grows to what the
// largest wants and stays. Called when a task is made, where running out of memory is still an
// exception.
std::shared_ptr<const AlignedFloats> stream_workspace(mx::Stream stream, int64_t floats);

}  // namespace vllm_metal::cpu
