// SPDX-License-Identifier: Apache-2.0
// What the fuzzers run. A parser may refuse its input by std::invalid_argument; anything else it
// throws, and any promise below that it breaks, ends the program. Each returns whether it accepted
// the input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "files/gguf_import.h"
#include "files/json.h"
#include "files/safetensors.h"

namespace vllm_metal {

inline void require(bool condition) {
  if (!condition) std::abort();
}

// What was read must read back equal from what it dumps.
inline bool fuzz_json(std::span<const std::byte> input) {
  Json json;
  try {
    json = Json::parse({reinterpret_cast<const char*>(input.data()), input.size()});
  } catch (const std::invalid_argument&) {
    return false;
  }
  const std::string text = json.dump();
  require(Json::parse(text).dump() == text);
  return true;
}

// Every tensor must lie in the file, behind the one before it.
inline bool fuzz_safetensors(std::span<const std::byte> input) {
  SafetensorsHeader header;
  try {
    header = parse_safetensors_header(input, input.size(), "fuzz");
  } catch (const std::invalid_argument&) {
    return false;
  }
  uint64_t end = 0;
  for (const TensorInfo& tensor : header.tensors) {
    require(tensor.offset >= end && tensor.nbytes <= input.size() - tensor.offset);
    require(tensor.nbytes == checked_nbytes(tensor.shape, tensor.dtype));
    end = tensor.offset + tensor.nbytes;
  }
  require(header.tensors.empty() || end == input.size());
  return true;
}

// Every tensor must lie in the file and convert to outputs of the announced sizes.
inline bool fuzz_gguf(std::span<const std::byte> input) {
  try {
    const GgufHeader header = parse_gguf_header(input, "fuzz");
    for (const GgufTensor& tensor : header.tensors) {
      require(tensor.offset <= input.size() && tensor.nbytes <= input.size() - tensor.offset);
    }
    for (const ImportedTensor& tensor : plan_import(header, read_llama_hyperparameters(header))) {
      const std::vector<TensorInfo> infos = tensor.outputs();
      const auto outputs =
          convert_tensor(tensor, input.subspan(tensor.source.offset, tensor.source.nbytes));
      require(outputs.size() == infos.size());
      for (size_t i = 0; i < outputs.size(); ++i) require(outputs[i].size() == infos[i].nbytes);
    }
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

}  // namespace vllm_metal
