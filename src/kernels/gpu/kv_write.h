// SPDX-License-Identifier: Apache-2.0
// The GPU kernel of kernels/kv_write.h, which checks the arguments.
#pragma once

#include "kernels/kv_view.h"

namespace vllm_metal::gpu {

void kv_write(KVView& view, const mx::array& keys, const mx::array& values);

}  // namespace vllm_metal::gpu
