// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "common/mlx.h"
#include "kernels/kv_view.h"

namespace vllm_metal {

struct HeadCounts {
  int num_heads;
  int num_kv_heads;
  int head_dim;
};

struct QueryKeyValue {
  mx::array queries;  // [num_tokens, num_heads, head_dim], rotated
  mx::array keys;     // [num_tokens, num_kv_heads, head_dim], rotated
  mx::array values;   // [num_tokens, num_kv_heads, head_dim]
};

// Splits the output of a fused QKV projection into heads and rotates queries and keys
// (rotary position embedding, arXiv:2104.09864; half-split pairs (i, i + rotary_dim / 2) as
// Hugging Face's rotate_half). The first rotary_dim of each head turn, the rest pass. One node.
// Rotation is computed in float32 and rounded to qkv's dtype.
//   qkv      [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: all q heads, then k, then v
//   cos_sin  float32 [num_tokens, rotary_dim]: cosines of the rotary_dim / 2 angles, then sines;
//            any attention scaling (YaRN) already multiplied in
QueryKeyValue split_rotary(const mx::array& qkv, const mx::array& cos_sin, const HeadCounts& heads);
QueryKeyValue split_rotary_fallback(const mx::array& qkv, const mx::array& cos_sin,
                                    const HeadCounts& heads);
// By one kernel, which MLX's compiler makes, where whole heads turn; for GPUs.
QueryKeyValue split_rotary_compiled(const mx::array& qkv, const mx::array& cos_sin,
                                    const HeadCounts& heads);

// split_rotary and kv_write in one: rotated keys and values go to the cache rows of their tokens,
// the handles of `view` are replaced (see kv_write), and the rotated queries are returned. One
// node, or the two ops where a GPU does not take our kernels. Throws std::invalid_argument as the
// two ops do.
mx::array rotary_kv_write(const mx::array& qkv, const mx::array& cos_sin, const HeadCounts& heads,
                          KVView& view);

// The graph node of rotary_kv_write that a device's `primitive` computes: from {qkv, cos_sin, key
// cache, value cache, slot_mapping} the queries and both caches, whose handles it replaces.
mx::array rotary_kv_write_node(std::shared_ptr<mx::Primitive> primitive, const mx::array& qkv,
                               const mx::array& cos_sin, const HeadCounts& heads, KVView& view);

}  // namespace vllm_metal
