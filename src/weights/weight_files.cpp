// SPDX-License-Identifier: Apache-2.0
#include "weights/weight_files.h"

#include <set>
#include <stdexcept>
#include <string>

#include "common/text.h"
#include "files/input_file.h"
#include "files/shard_index.h"

namespace vllm_metal {

namespace {

namespace fs = std::filesystem;

// Of the largest models' indices, the limit of a safetensors header leaves room for a hundredfold.
constexpr uint64_t kMaxIndexBytes = 100'000'000;

WeightFiles read_index(const fs::path& dir, const fs::path& index, WeightFiles::Format format) {
  WeightFiles files{format, {}, {}, index};
  std::set<std::string> names;
  const std::string content = read_small_file(index, kMaxIndexBytes);
  try {
    for (const auto& [tensor, name] : parse_shard_index(content)) {
      files.places.emplace(tensor, dir / name);
      names.insert(name);
    }
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(text("[weights] ", index.string(), ": ", error.what()));
  }
  for (const std::string& name : names) files.paths.push_back(dir / name);
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
