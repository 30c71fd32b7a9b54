// SPDX-License-Identifier: Apache-2.0
#include "layers/attention.h"

#include <array>

#include "kernels/varlen_attention.h"

namespace vllm_metal {

Attention Attention::load(LoadContext& load, const std::string& name,
                          const AttentionConfig& config) {
  const auto& heads = config.heads;
  const std::array<Projection, 3> qkv{{{name + ".q_proj", heads.num_heads * heads.head_dim},
                                       {name + ".k_proj", heads.num_kv_heads * heads.head_dim},
                                       {name + ".v_proj", heads.num_kv_heads * heads.head_dim}}};
  return Attention(
      config, Linear::load(load, qkv, config.hidden_size),
      Linear::load(load, name + ".o_proj", heads.num_heads * heads.head_dim, config.hidden_size));
}

mx::array Attention::operator()(const mx::array& x, const mx::array& cos_sin,
                                ForwardContext& context, const OutputTokens* outputs) const {
  KVView cache = context.cache.view(config_.layer, context.layout);
  mx::array queries = rotary_kv_write(qkv_(x), cos_sin, config_.heads, cache);
  if (outputs != nullptr) queries = mx::take(queries, outputs->rows, 0);
  const BatchLayout& layout = outputs != nullptr ? outputs->layout : context.layout;
  KVView of_queries{cache.keys, cache.values, layout};
  const mx::array attended = varlen_attention(queries, of_queries, {.scale = config_.scale});
  return output_(
      mx::reshape(attended, {attended.shape(0), config_.heads.num_heads * config_.heads.head_dim}));
}

}  // namespace vllm_metal
