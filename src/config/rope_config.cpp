// SPDX-License-Identifier: Apache-2.0
#include "config/rope_config.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "common/text.h"

namespace vllm_metal {

namespace {

const Json* find_non_null(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

double number_or(const Json& object, std::string_view key, double fallback) {
  const Json* value = find_non_null(object, key);
  return value ? value->as_double() : fallback;
}

double positive(double value, const char* key) {
  if (!(value > 0) || !std::isfinite(value))
    throw std::invalid_argument(
        text("[config] ", key, " must be a positive number but is ", value, "."));
  return value;
}

double required_positive(const Json& settings, const char* key, const std::string& type) {
  const Json* value = find_non_null(settings, key);
  if (!value)
    throw std::invalid_argument(text("[config] rope type ", type, " needs the key ", key, "."));
  return positive(value->as_double(), key);
}

RopeType parse_type(const std::string& name) {
  if (name == "default") return RopeType::kDefault;
  if (name == "linear") return RopeType::kLinear;
  if (name == "dynamic") return RopeType::kDynamic;
  if (name == "llama3") return RopeType::kLlama3;
  if (name == "yarn") return RopeType::kYarn;
  throw std::invalid_argument(
      text("[config] rope type must be one of default, linear, dynamic, llama3, yarn but is '",
           name, "'."));
}

// The attention scaling of YaRN (arXiv:2309.00071), with the mscale extension of DeepSeek.
double yarn_attention_factor(const Json& settings, double factor) {
  if (const Json* given = find_non_null(settings, "attention_factor")) return given->as_double();
  auto mscale = [](double scale, double m) {
    return scale <= 1 ? 1.0 : 0.1 * m * std::log(scale) + 1.0;
  };
  double numerator = number_or(settings, "mscale", 0),
         denominator = number_or(settings, "mscale_all_dim", 0);
  if (numerator != 0 && denominator != 0)
    return mscale(factor, numerator) / mscale(factor, denominator);
  return mscale(factor, 1.0);
}

}  // namespace

RopeConfig RopeConfig::from_json(const Json& config) {
  static const Json kEmpty{Json::Object{}};
  const Json* settings = find_non_null(config, "rope_parameters");
  if (!settings) settings = find_non_null(config, "rope_scaling");
  if (!settings) settings = &kEmpty;

  RopeConfig rope;
  const double top_level_theta = number_or(config, "rope_theta", 10000.0);
  rope.theta = positive(number_or(*settings, "rope_theta", top_level_theta), "rope_theta");
  rope.partial_rotary_factor = positive(number_or(*settings, "partial_rotary_factor",
                                                  number_or(config, "partial_rotary_factor", 1.0)),
                                        "partial_rotary_factor");
  const Json* type = find_non_null(*settings, "rope_type");
  if (!type) type = find_non_null(*settings, "type");  // the older spelling
  const std::string name = type ? type->as_string() : "default";
  rope.type = parse_type(name);
  if (rope.type == RopeType::kDefault) return rope;

  const double max_positions = number_or(config, "max_position_embeddings", 2048);
  rope.original_max_position_embeddings =
      rope.type == RopeType::kDynamic
          ? max_positions
          : positive(
                number_or(*settings, "original_max_position_embeddings",
                          number_or(config, "original_max_position_embeddings", max_positions)),
                "original_max_position_embeddings");
  const bool factor_may_be_null =
      rope.type == RopeType::kYarn && !find_non_null(*settings, "factor");
  rope.factor = factor_may_be_null ? max_positions / rope.original_max_position_embeddings
                                   : required_positive(*settings, "factor", name);
  if (rope.type == RopeType::kLlama3) {
    rope.low_freq_factor = required_positive(*settings, "low_freq_factor", name);
    rope.high_freq_factor = required_positive(*settings, "high_freq_factor", name);
    if (rope.high_freq_factor <= rope.low_freq_factor)
      throw std::invalid_argument(text("[config] high_freq_factor (", rope.high_freq_factor,
                                       ") must be greater than low_freq_factor (",
                                       rope.low_freq_factor, ")."));
  }
  if (rope.type == RopeType::kYarn) {
    if (double given = number_or(*settings, "beta_fast", 0); given != 0) rope.beta_fast = given;
    if (double given = number_or(*settings, "beta_slow", 0); given != 0) rope.beta_slow = given;
    if (const Json* truncate = find_non_null(*settings, "truncate"))
      rope.truncate = truncate->as_bool();
    rope.attention_factor = yarn_attention_factor(*settings, rope.factor);
  }
  return rope;
}

}  // namespace vllm_metal
