// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>

#include "files/json.h"

namespace vllm_metal {

// MLX's affine quantisation of one layer (see QuantizedMatrix in kernels/linear.h).
struct QuantizationSpec {
  int group_size;
  int bits;
  bool operator==(const QuantizationSpec&) const = default;
};

// The `quantization` member of an MLX community model's config: one default and layers that
// differ from it, by the name of the module ("model.layers.3.mlp.down_proj").
struct QuantizationConfig {
  QuantizationSpec default_spec;
  std::map<std::string, std::optional<QuantizationSpec>, std::less<>>
      layers;  // nullopt: not quantised

  // How module `name` is quantised if its weights are; nullopt when the config says it is not.
  std::optional<QuantizationSpec> spec_of(const std::string& name) const;

  // Reads `quantization`, else `quantization_config`; nullopt when the config has neither. Throws
  // std::invalid_argument for a method or a setting that this library does not read.
  static std::optional<QuantizationConfig> from_json(const Json& config);
};

}  // namespace vllm_metal
