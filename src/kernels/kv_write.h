// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/kv_view.h"

namespace vllm_metal {

// Writes the keys and values of this step's tokens into the cache rows that
// `view.layout.slot_mapping` names, and replaces the handles of the view by ones whose
// graph node follows the write. One node. The memory stays where it is, also while
// an earlier step is still being computed (see alias_output).
//   keys, values  [num_tokens, num_kv_heads, head_dim], any strides, of the cache's dtype
// Throws std::invalid_argument when shapes or dtypes differ from the cache's.
void kv_write(KVView& view, const mx::array& keys, const mx::array& values);

// The same in public MLX ops, one slice_update a run of consecutive rows: for devices without
// a kernel, and the reference in tests.
void kv_write_fallback(KVView& view, const mx::array& keys, const mx::array& values);

// What kv_write and the ops that write the cache themselves ask of it: keys and values of one
// shape, of this dtype and these heads, and slots that lie in it. Throws as kv_write does.
void check_cache_for_writing(const char* op, const KVView& view, int num_kv_heads, int head_dim,
                             mx::Dtype dtype);

}  // namespace vllm_metal
