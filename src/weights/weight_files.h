// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace vllm_metal {

// Which files of a model's directory hold its weights.
struct WeightFiles {
  enum class Format { kSafetensors, kPickle };

  Format format;
  std::vector<std::filesystem::path> paths;
  // Where the index places each tensor, by the tensor's name; empty for a single file.
  std::map<std::string, std::filesystem::path> places;
  std::filesystem::path index;  // empty for a single file
};

// The shards that model.safetensors.index.json names, else model.safetensors, else the same of
// pytorch_model.bin. Throws std::invalid_argument when there is none of them or an index is not
// what it should be, std::runtime_error when it cannot be read. The files named need not exist.
WeightFiles find_weight_files(const std::filesystem::path& dir);

}  // namespace vllm_metal
