// SPDX-License-Identifier: Apache-2.0
#include "models/registry.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

#define ARCHITECTURE(name, factory) \
  std::unique_ptr<Model> factory(const ModelConfig&, LoadContext&);
#include "models/architectures.inc"
#undef ARCHITECTURE

namespace {

const std::map<std::string, ModelFactory, std::less<>>& factories() {
  static const std::map<std::string, ModelFactory, std::less<>> map{
#define ARCHITECTURE(name, factory) {name, factory},
#include "models/architectures.inc"
#undef ARCHITECTURE
  };
  return map;
}

}  // namespace

std::vector<std::string> supported_architectures() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : factories()) names.push_back(name);
  return names;
}

std::unique_ptr<Model> load_model(const std::filesystem::path& dir, const ModelConfig& config,
                                  mx::Dtype dtype, LoadCallbacks callbacks) {
  const auto found = factories().find(config.architecture);
  if (found == factories().end())
    throw std::invalid_argument(text("[models] architecture '", config.architecture,
                                     "' is not supported; supported are ",
                                     join(supported_architectures()), "."));
  WeightStore weights(dir, std::move(callbacks));
  LoadContext load{weights, config.quantization, dtype};
  auto model = found->second(config, load);
  weights.expect_empty();
  return model;
}

}  // namespace vllm_metal
