// SPDX-License-Identifier: Apache-2.0
// The GPU kernel of rotary_kv_write in kernels/split_rotary.h, which checks the arguments.
#pragma once

#include "kernels/split_rotary.h"

namespace vllm_metal::gpu {

mx::array rotary_kv_write(const mx::array& qkv, const mx::array& cos_sin, const HeadCounts& heads,
                          KVView& view);

}  // namespace vllm_metal::gpu
