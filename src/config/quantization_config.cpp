// SPDX-License-Identifier: Apache-2.0
#include "config/quantization_config.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

namespace {

constexpr std::array<int, 6> kBits{2, 3, 4, 5, 6, 8};

QuantizationSpec parse_spec(const Json& json, const std::string& where) {
  if (const Json* mode = json.find("mode");
      mode && !mode->is_null() && mode->as_string() != "affine")
    throw std::invalid_argument(text("[config] ", where,
                                     ": quantisation mode must be affine but is '",
                                     mode->as_string(), "'."));
  const int64_t bits = json.at("bits").as_int();
  if (std::find(kBits.begin(), kBits.end(), bits) == kBits.end())
    throw std::invalid_argument(
        text("[config] ", where, ": bits must be one of ", join(kBits), " but is ", bits, "."));
  const int64_t group_size = json.at("group_size").as_int();
  if (group_size < 1 || group_size > (1 << 20))
    throw std::invalid_argument(
        text("[config] ", where, ": group_size must be positive but is ", group_size, "."));
  return {static_cast<int>(group_size), static_cast<int>(bits)};
}

}  // namespace

std::optional<QuantizationSpec> QuantizationConfig::spec_of(const std::string& name) const {
  auto found = layers.find(name);
  return found != layers.end() ? found->second : std::optional(default_spec);
}

std::optional<QuantizationConfig> QuantizationConfig::from_json(const Json& config) {
  const Json* json = config.find("quantization");
  if (!json || json->is_null()) json = config.find("quantization_config");
  if (!json || json->is_null()) return std::nullopt;
  if (const Json* method = json->find("quant_method"); method && !method->is_null())
    throw std::invalid_argument(
        text("[config] quantization_config: quant_method '", method->as_string(),
             "' is not supported; allowed are MLX's affine weights (no quant_method)."));
  QuantizationConfig result{parse_spec(*json, "quantization"), {}};
  for (const auto& [name, value] : json->as_object()) {
    if (value.is_object())
      result.layers.emplace(name, parse_spec(value, "quantization of " + name));
    // MLX writes `false` for a layer kept in full precision, `true` for one like the rest.
    if (value.is_bool() && !value.as_bool()) result.layers.emplace(name, std::nullopt);
  }
  return result;
}

}  // namespace vllm_metal
