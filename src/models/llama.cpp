// SPDX-License-Identifier: Apache-2.0
// Llama (arXiv:2302.13971, arXiv:2407.21783) and models of the same shape: Mistral without sliding
// window (arXiv:2310.06825), SmolLM2 (arXiv:2502.02737).
#include <cmath>
#include <stdexcept>
#include <tuple>

#include "common/text.h"
#include "layers/attention.h"
#include "layers/embedding.h"
#include "layers/gated_mlp.h"
#include "layers/rms_norm.h"
#include "layers/rotary_embedding.h"
#include "models/model.h"

namespace vllm_metal {

namespace {

struct LlamaBlock {
  RMSNorm input_layernorm;
  Attention self_attn;
  RMSNorm post_attention_layernorm;
  GatedMLP mlp;

  static LlamaBlock load(LoadContext& load, const ModelConfig& config, int layer) {
    const std::string name = text("model.layers.", layer);
    const AttentionConfig attention{
        .layer = layer,
        .hidden_size = config.hidden_size,
        .heads = {config.num_attention_heads, config.num_key_value_heads, config.head_dim},
        .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
    };
    // Older checkpoints stored what is computed here.
    load.weights.skip(name + ".self_attn.rotary_emb.inv_freq");
    return {RMSNorm::load(load, name + ".input_layernorm", config.hidden_size, config.rms_norm_eps),
            Attention::load(load, name + ".self_attn", attention),
            RMSNorm::load(load, name + ".post_attention_layernorm", config.hidden_size,
                          config.rms_norm_eps),
            GatedMLP::load(load, name + ".mlp", config.hidden_size, config.intermediate_size)};
  }
};

class LlamaModel final : public Model {
 public:
  LlamaModel(const ModelConfig& config, LoadContext& load)
      : config_(config),
        dtype_(load.dtype),
        rotary_embedding_(config.rope, config.head_dim),
        lm_head_is_tied_(is_lm_head_tied(config, load.weights)),
        embed_tokens_(
            Embedding::load(load, "model.embed_tokens", config.vocab_size, config.hidden_size)),
        layers_(load_layers(config, load)),
        norm_(RMSNorm::load(load, "model.norm", config.hidden_size, config.rms_norm_eps)),
        lm_head_(load_lm_head(load)) {}

  mx::array forward(const mx::array& token_ids, ForwardContext& context) const override {
    const mx::array cos_sin = rotary_embedding_.cos_sin(context);
    mx::array residual = embed_tokens_(token_ids);  // [num_tokens, hidden_size]
    mx::array x = layers_.front().input_layernorm(residual);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const LlamaBlock& block = layers_[i];
      const bool is_last = i + 1 == layers_.size();
      const RMSNorm& next_norm = is_last ? norm_ : layers_[i + 1].input_layernorm;
      // No layer reads what the last one makes of the other tokens, but for keys and values.
      const OutputTokens* outputs = is_last ? context.outputs : nullptr;
      const mx::array attended = block.self_attn(x, cos_sin, context, outputs);
      if (outputs != nullptr) residual = mx::take(residual, outputs->rows, 0);
      std::tie(residual, x) = block.post_attention_layernorm(attended, residual);
      std::tie(residual, x) = next_norm(block.mlp(x), residual);
    }
    return x;
  }

  mx::array logits(const mx::array& hidden) const override {
    mx::array all = lm_head_(hidden);  // [num_rows, vocab_size or more]
    if (all.shape(1) == config_.vocab_size) return all;
    return mx::slice(all, {0, 0}, {all.shape(0), config_.vocab_size});
  }

  KVCacheSpec kv_cache_spec() const override {
    return {config_.num_hidden_layers, config_.num_key_value_heads, config_.head_dim, dtype_};
  }

 private:
  static std::vector<LlamaBlock> load_layers(const ModelConfig& config, LoadContext& load) {
    std::vector<LlamaBlock> layers;
    for (int layer = 0; layer < config.num_hidden_layers; ++layer)
      layers.push_back(LlamaBlock::load(load, config, layer));
    return layers;
  }

  // What the checkpoint has decides, as in transformers: a head of its own is used whatever the
  // config says, and one that equals the embedding is not kept twice.
  static bool is_lm_head_tied(const ModelConfig& config, const WeightStore& weights) {
    if (!weights.contains("lm_head.weight")) return config.tie_word_embeddings;
    for (const char* suffix : {".weight", ".scales", ".biases"}) {
      const std::string head = text("lm_head", suffix);
      const std::string embedding = text("model.embed_tokens", suffix);
      if (weights.contains(head) != weights.contains(embedding)) return false;
      if (weights.contains(head) && !weights.are_equal(head, embedding)) return false;
    }
    return !weights.contains("lm_head.bias");
  }

  Linear load_lm_head(LoadContext& load) const {
    if (!lm_head_is_tied_)
      return Linear::load(load, "lm_head", config_.hidden_size,
                          padded_vocab_size(load, "lm_head", config_.vocab_size));
    for (const char* suffix : {".weight", ".scales", ".biases"})
      load.weights.skip(std::string("lm_head") + suffix);
    return embed_tokens_.as_linear();
  }

  ModelConfig config_;
  mx::Dtype dtype_;
  RotaryEmbedding rotary_embedding_;
  bool lm_head_is_tied_;  // found out before the embedding is taken
  Embedding embed_tokens_;
  std::vector<LlamaBlock> layers_;
  RMSNorm norm_;
  Linear lm_head_;
};

// What other members of the family have and this code does not.
void check_supported(const ModelConfig& config) {
  if (const Json* window = config.json.find("sliding_window"); window && !window->is_null())
    throw std::invalid_argument(text("[", config.architecture,
                                     "] sliding_window must be null but is ", window->dump(), "."));
  if (const Json* act = config.json.find("hidden_act");
      act && !act->is_null() && act->as_string() != "silu")
    throw std::invalid_argument(text("[", config.architecture, "] hidden_act must be silu but is '",
                                     act->as_string(), "'."));
}

}  // namespace

std::unique_ptr<Model> make_llama(const ModelConfig& config, LoadContext& load) {
  check_supported(config);
  return std::make_unique<LlamaModel>(config, load);
}

}  // namespace vllm_metal
