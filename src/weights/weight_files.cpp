// SPDX-License-Identifier: Apache-2.0
#include "weights/weight_files.h"

#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>

#include "common/text.h"
#include "files/json.h"

namespace vllm_metal {

namespace {

namespace fs = std::filesystem;

std::string read_small_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  if (!file || !(content << file.rdbuf()))
    throw std::runtime_error(text("[weights] cannot read ", path.string(), "."));
  return content.str();
}

WeightFiles read_index(const fs::path& dir, const fs::path& index, WeightFiles::Format format) {
  WeightFiles files{format, {}, {}, index};
  std::set<std::string> names;
  try {
    const Json json = Json::parse(read_small_file(index));
    for (const auto& [tensor, file] : json.at("weight_map").as_object()) {
      files.places.emplace(tensor, dir / file.as_string());
      names.insert(file.as_string());
    }
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("[weights] ", index.string(), ": ", error.what()));
  }
  for (const std::string& name : names) {
    // A shard is a file of this folder: the index is not trusted with paths.
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
      throw std::invalid_argument(text("[weights] ", index.string(), ": '", name,
                                       "' is not the name of a file beside it."));
    files.paths.push_back(dir / name);
  }
  return files;
}

}  // namespace

WeightFiles find_weight_files(const fs::path& dir) {
  using Format = WeightFiles::Format;
  for (const auto& [single, format] : {std::pair{"model.safetensors", Format::kSafetensors},
                                       std::pair{"pytorch_model.bin", Format::kPickle}}) {
    const fs::path path = dir / single, index = dir / text(single, ".index.json");
    if (fs::exists(index)) return read_index(dir, index, format);
    if (fs::exists(path)) return {format, {path}, {}, {}};
  }
  throw std::invalid_argument(
      text("[weights] ", dir.string(), " has neither model.safetensors nor ",
           "model.safetensors.index.json, pytorch_model.bin or pytorch_model.bin.index.json."));
}

}  // namespace vllm_metal
