// SPDX-License-Identifier: Apache-2.0
// What the fuzzers run. A parser may refuse its input by std::invalid_argument; anything else it
// throws, and any promise below that it breaks, ends the program. Each returns whether it accepted
// the input.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "config/model_config.h"
#include "files/gguf_import.h"
#include "files/json.h"
#include "files/safetensors.h"
#include "files/shard_index.h"

namespace vllm_metal {

inline void require(bool condition) {
  if (!condition) std::abort();
}

inline std::string_view text_of(std::span<const std::byte> input) {
  return {reinterpret_cast<const char*>(input.data()), input.size()};
}

// What was read must read back equal from what it dumps.
inline bool fuzz_json(std::span<const std::byte> input) {
  Json json;
  try {
    json = Json::parse(text_of(input));
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

// Every shard must be a file of the index's folder.
inline bool fuzz_index(std::span<const std::byte> input) {
  try {
    for (const auto& [tensor, shard] : parse_shard_index(text_of(input))) {
      require((std::filesystem::path("/folder") / shard).lexically_normal().parent_path() ==
              "/folder");
      require(shard.find('\0') == std::string::npos && shard.find('\n') == std::string::npos);
    }
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

inline void require_spec(const QuantizationSpec& spec) {
  require(spec.bits >= 2 && spec.bits <= 8 && spec.group_size >= 1 && spec.group_size <= 1 << 20);
}

// Sizes must be such that products of two are exact, and quantisation what kernels could have.
inline bool fuzz_config(std::span<const std::byte> input) {
  try {
    const ModelConfig config = ModelConfig::from_json(Json::parse(text_of(input)));
    for (int size : {config.hidden_size, config.intermediate_size, config.num_hidden_layers,
                     config.num_attention_heads, config.num_key_value_heads, config.head_dim,
                     config.vocab_size, config.max_position_embeddings}) {
      require(size >= 1 && size <= 1 << 24);
    }
    require(config.num_attention_heads % config.num_key_value_heads == 0);
    require(config.rms_norm_eps > 0 && config.rope.theta > 0 && std::isfinite(config.rope.theta));
    if (!config.quantization) return true;
    require_spec(config.quantization->default_spec);
    for (const auto& [name, spec] : config.quantization->layers) {
      require(config.quantization->spec_of(name) == spec);
      if (spec) require_spec(*spec);
    }
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

// A folder of this process, on a file system in memory where there is one; removed at its end.
struct FuzzFolder {
  std::filesystem::path path = std::filesystem::is_directory("/dev/shm")
                                   ? std::filesystem::path("/dev/shm")
                                   : std::filesystem::temp_directory_path();
  FuzzFolder() {
    path /= "vllm_metal_fuzz_" + std::to_string(::getpid());
    std::filesystem::create_directories(path);
  }
  ~FuzzFolder() { std::filesystem::remove_all(path); }
};

inline void write_whole(const std::filesystem::path& path, std::span<const std::byte> content) {
  std::ofstream(path, std::ios::binary) << text_of(content);
}

// What is imported from a file on disk must be a safetensors file of the tensors announced; where
// one cannot be converted, no file is left.
inline bool fuzz_import(std::span<const std::byte> input) {
  namespace fs = std::filesystem;
  static const FuzzFolder folder;
  const fs::path source = folder.path / "fuzz.gguf", target = folder.path / "fuzz.safetensors";
  fs::remove(target);
  write_whole(source, input);
  bool accepted = true;
  try {
    const GgufImport import(source);
    import.write(target, [](uint64_t done, uint64_t total) { require(done <= total); });
    uint64_t bytes = 0;
    for (const TensorInfo& tensor : read_safetensors_header(target).tensors) bytes += tensor.nbytes;
    require(bytes == import.output_bytes());
  } catch (const std::invalid_argument&) {
    require(!fs::exists(target));
    accepted = false;
  }
  return accepted;
}

}  // namespace vllm_metal
