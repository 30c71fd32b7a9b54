// SPDX-License-Identifier: Apache-2.0
// The kernels of src/kernels/gpu, as they are, for the harness.
#pragma once

#include "gpu/prelude_harness.h"
#include "kernels/gpu/kernel_arguments.h"

namespace gpu_harness {
namespace kernels {
// In the order of sources.txt.
// clang-format off
#include "kernels/gpu/cache_rows.metal"
#include "kernels/gpu/kv_write.metal"
#include "kernels/gpu/rotary_kv_write.metal"
#include "kernels/gpu/copy_blocks.metal"
#include "kernels/gpu/add_rms_norm.metal"
#include "kernels/gpu/fragment.metal"
#include "kernels/gpu/attention_scores.metal"
#include "kernels/gpu/attention_prefill.metal"
#include "kernels/gpu/attention_decode.metal"
#include "kernels/gpu/attention_merge.metal"
// clang-format on
}  // namespace kernels
}  // namespace gpu_harness
