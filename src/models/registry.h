// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "models/model.h"

namespace vllm_metal {

// Architectures that can be loaded, sorted.
std::vector<std::string> supported_architectures();

// Loads a model from the weight files of a directory. Throws std::invalid_argument naming
// what is unsupported, missing, superfluous or of the wrong shape.
//   dtype  of activations and unquantised weights: float32, float16 or bfloat16
std::unique_ptr<Model> load_model(const std::filesystem::path& dir, const ModelConfig& config,
                                  mx::Dtype dtype, LoadCallbacks callbacks = {});

}  // namespace vllm_metal
