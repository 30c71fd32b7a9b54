// SPDX-License-Identifier: Apache-2.0
#include "config/model_config.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "common/text.h"

namespace vllm_metal {

namespace {

// Far above any model, and low enough that products of two sizes stay exact in 64 bits.
constexpr int64_t kMaxSize = int64_t{1} << 24;

int checked_size(const Json& value, std::string_view key) {
  const int64_t size = value.as_int();
  if (size < 1 || size > kMaxSize)
    throw std::invalid_argument(
        text("[config] ", key, " must be from 1 to ", kMaxSize, " but is ", size, "."));
  return static_cast<int>(size);
}

int required_size(const Json& config, std::string_view key) {
  return checked_size(config.at(key), key);
}

int size_or(const Json& config, std::string_view key, int fallback) {
  const Json* value = config.find(key);
  return value && !value->is_null() ? checked_size(*value, key) : fallback;
}

std::string read_architecture(const Json& config) {
  const auto& names = config.at("architectures").as_array();
  if (names.empty())
    throw std::invalid_argument("[config] architectures must name one but is empty.");
  return names.front().as_string();
}

int default_head_dim(const ModelConfig& config) {
  if (config.hidden_size % config.num_attention_heads != 0)
    throw std::invalid_argument(text("[config] without head_dim, hidden_size (", config.hidden_size,
                                     ") must be a multiple of num_attention_heads (",
                                     config.num_attention_heads, ")."));
  return config.hidden_size / config.num_attention_heads;
}

}  // namespace

ModelConfig ModelConfig::from_json(Json json) {
  ModelConfig config;
  config.architecture = read_architecture(json);
  config.hidden_size = required_size(json, "hidden_size");
  config.intermediate_size = required_size(json, "intermediate_size");
  config.num_hidden_layers = required_size(json, "num_hidden_layers");
  config.num_attention_heads = required_size(json, "num_attention_heads");
  config.num_key_value_heads = size_or(json, "num_key_value_heads", config.num_attention_heads);
  if (config.num_attention_heads % config.num_key_value_heads != 0)
    throw std::invalid_argument(text("[config] num_attention_heads (", config.num_attention_heads,
                                     ") must be a multiple of num_key_value_heads (",
                                     config.num_key_value_heads, ")."));
  const Json* head_dim = json.find("head_dim");
  config.head_dim = head_dim && !head_dim->is_null() ? checked_size(*head_dim, "head_dim")
                                                     : default_head_dim(config);
  const int64_t width = (int64_t{config.num_attention_heads} + 2 * config.num_key_value_heads) *
                        config.head_dim;  // of queries, keys and values, which arrays count in int
  if (width > std::numeric_limits<int>::max())
    throw std::invalid_argument(
        text("[config] num_attention_heads (", config.num_attention_heads,
             ") and twice num_key_value_heads (", config.num_key_value_heads, "), times head_dim (",
             config.head_dim, "), must be below 2^31 but are ", width, "."));
  config.vocab_size = required_size(json, "vocab_size");
  config.max_position_embeddings = size_or(json, "max_position_embeddings", 2048);
  if (const Json* eps = json.find("rms_norm_eps"); eps && !eps->is_null())
    config.rms_norm_eps = static_cast<float>(eps->as_double());
  if (!(config.rms_norm_eps > 0) || !std::isfinite(config.rms_norm_eps))
    throw std::invalid_argument(
        text("[config] rms_norm_eps must be positive but is ", config.rms_norm_eps, "."));
  config.rope = RopeConfig::from_json(json);
  config.quantization = QuantizationConfig::from_json(json);
  config.json = std::move(json);
  config.tie_word_embeddings = config.flag("tie_word_embeddings");
  return config;
}

bool ModelConfig::flag(std::string_view key) const {
  const Json* value = json.find(key);
  return value && !value->is_null() && value->as_bool();
}

}  // namespace vllm_metal
