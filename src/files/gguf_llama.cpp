// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_llama.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string_view>

#include "common/text.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

[[noreturn]] void key_error(std::string_view key, const std::string& trouble) {
  throw std::invalid_argument(
      text("[import-gguf] metadata key \"", printable(key), "\" ", trouble));
}

const GgufValue* find(const GgufHeader& header, std::string_view key) {
  auto found = header.metadata.find(key);
  return found == header.metadata.end() ? nullptr : &found->second;
}

const GgufValue& require(const GgufHeader& header, std::string_view key) {
  const GgufValue* value = find(header, key);
  if (!value) key_error(key, "is missing.");
  return *value;
}

int64_t as_count(std::string_view key, const GgufValue& value) {
  constexpr uint64_t kMax = 0x7fffffff;
  if (const auto* number = std::get_if<uint64_t>(&value); number && *number <= kMax) {
    return static_cast<int64_t>(*number);
  }
  if (const auto* number = std::get_if<int64_t>(&value);
      number && *number >= 0 && static_cast<uint64_t>(*number) <= kMax) {
    return *number;
  }
  bool per_layer = std::holds_alternative<GgufArray>(value);
  key_error(key, per_layer ? "differs between layers, which is not supported."
                           : "must be an integer from 0 to 2147483647.");
}

int64_t positive(const GgufHeader& header, std::string_view key) {
  int64_t count = as_count(key, require(header, key));
  if (count == 0) key_error(key, "must be positive but is 0.");
  return count;
}

int64_t positive_or(const GgufHeader& header, std::string_view key, int64_t fallback) {
  return find(header, key) ? positive(header, key) : fallback;
}

float positive_real(std::string_view key, const GgufValue& value) {
  const auto* number = std::get_if<float>(&value);
  if (!number || !std::isfinite(*number) || *number <= 0) {
    key_error(key, "must be a positive float32.");
  }
  return *number;
}

void require_equal(const GgufHeader& header, std::string_view key, int64_t wanted,
                   const char* reason) {
  const GgufValue* value = find(header, key);
  if (!value) return;
  int64_t count = as_count(key, *value);
  if (count != wanted)
    key_error(key, text("must be ", wanted, " ", reason, " but is ", count, "."));
}

// A key that we do not know may change what the model computes.
void check_known_keys(const GgufHeader& header) {
  static const std::set<std::string_view> kKnown = {
      "llama.attention.head_count",
      "llama.attention.head_count_kv",
      "llama.attention.key_length",
      "llama.attention.layer_norm_rms_epsilon",
      "llama.attention.value_length",
      "llama.block_count",
      "llama.context_length",
      "llama.embedding_length",
      "llama.expert_count",
      "llama.expert_used_count",
      "llama.feed_forward_length",
      "llama.rope.dimension_count",
      "llama.rope.freq_base",
      "llama.rope.scaling.type",
      "llama.vocab_size",
  };
  for (const auto& [key, value] : header.metadata) {
    if (key.starts_with("llama.") && !kKnown.contains(key)) {
      key_error(key, text("is not supported; allowed are ", join(kKnown), "."));
    }
  }
}

void check_architecture(const GgufHeader& header) {
  const auto* name = std::get_if<std::string>(&require(header, "general.architecture"));
  if (!name || *name != "llama") {
    throw std::invalid_argument(text("[import-gguf] architecture \"",
                                     name ? printable(*name) : "not a string",
                                     "\" is not supported; allowed is llama."));
  }
}

void check_unsupported(const GgufHeader& header, const LlamaHyperparameters& model) {
  require_equal(header, "llama.expert_count", 0, "(mixtures of experts are not supported)");
  require_equal(header, "llama.expert_used_count", 0, "(mixtures of experts are not supported)");
  require_equal(header, "llama.attention.value_length", model.head_dim, "like the key length");
  require_equal(header, "llama.rope.dimension_count", model.head_dim,
                "like the head size (partial rotary embedding is not supported)");
  require_equal(header, "llama.vocab_size", model.vocab_size, "like the rows of the embedding");
  constexpr std::string_view kScaling = "llama.rope.scaling.type";
  if (const GgufValue* scaling = find(header, kScaling)) {
    const auto* name = std::get_if<std::string>(scaling);
    if (!name || *name != "none") key_error(kScaling, "must be \"none\"; no scaling is imported.");
  }
  if (model.num_attention_heads % model.num_key_value_heads != 0) {
    throw std::invalid_argument(text("[import-gguf] ", model.num_attention_heads,
                                     " attention heads are no multiple of ",
                                     model.num_key_value_heads, " key-value heads."));
  }
  if (model.head_dim % 2 != 0) {
    throw std::invalid_argument(
        text("[import-gguf] the head size must be even but is ", model.head_dim, "."));
  }
}

int64_t embedding_rows(const GgufHeader& header) {
  auto found = std::find_if(header.tensors.begin(), header.tensors.end(),
                            [](const auto& tensor) { return tensor.name == "token_embd.weight"; });
  if (found == header.tensors.end() || found->shape.size() != 2) {
    throw std::invalid_argument(
        "[import-gguf] tensor \"token_embd.weight\" is missing or has not two dimensions.");
  }
  return found->shape[0];
}

int64_t head_size(const GgufHeader& header, const LlamaHyperparameters& model) {
  constexpr std::string_view kKey = "llama.attention.key_length";
  if (find(header, kKey)) return positive(header, kKey);
  if (model.hidden_size % model.num_attention_heads != 0) {
    throw std::invalid_argument(text("[import-gguf] hidden size ", model.hidden_size,
                                     " is no multiple of ", model.num_attention_heads,
                                     " attention heads."));
  }
  return model.hidden_size / model.num_attention_heads;
}

}  // namespace

LlamaHyperparameters read_llama_hyperparameters(const GgufHeader& header) {
  check_architecture(header);
  check_known_keys(header);
  LlamaHyperparameters model;
  model.vocab_size = embedding_rows(header);
  model.hidden_size = positive(header, "llama.embedding_length");
  model.intermediate_size = positive(header, "llama.feed_forward_length");
  model.num_hidden_layers = positive(header, "llama.block_count");
  model.num_attention_heads = positive(header, "llama.attention.head_count");
  model.num_key_value_heads =
      positive_or(header, "llama.attention.head_count_kv", model.num_attention_heads);
  model.head_dim = head_size(header, model);
  model.max_position_embeddings = positive(header, "llama.context_length");
  constexpr std::string_view kEpsilon = "llama.attention.layer_norm_rms_epsilon";
  model.rms_norm_eps = positive_real(kEpsilon, require(header, kEpsilon));
  constexpr std::string_view kTheta = "llama.rope.freq_base";
  const GgufValue* theta = find(header, kTheta);
  model.rope_theta = theta ? positive_real(kTheta, *theta) : 10000.0f;
  check_unsupported(header, model);
  return model;
}

}  // namespace vllm_metal
