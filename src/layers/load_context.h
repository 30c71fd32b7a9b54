// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "common/array_arena.h"
#include "config/quantization_config.h"
#include "weights/weight_store.h"

namespace vllm_metal {

// What layers need to load themselves.
struct LoadContext {
  WeightStore& weights;
  const std::optional<QuantizationConfig>& quantization;
  mx::Dtype dtype;  // of activations, and of weights that are not quantised
  // Where matrices go that the CPU's kernels stream.
  ArrayArena arena{weights.total_bytes()};

  // How the module of that name is quantised; nullopt when its weights are plain. Throws
  // std::invalid_argument when weights and config do not agree.
  std::optional<QuantizationSpec> spec_of(const std::string& name) const {
    if (!weights.contains(name + ".scales")) return std::nullopt;
    auto spec = quantization ? quantization->spec_of(name) : std::nullopt;
    if (!spec)
      throw std::invalid_argument("[weights] " + name +
                                  ".scales exists but the config has no quantization for " + name +
                                  ".");
    return spec;
  }
};

}  // namespace vllm_metal
