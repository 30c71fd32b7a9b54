// SPDX-License-Identifier: Apache-2.0
// Small Llama models with random weights, written as model directories.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/mlx.h"
#include "common/text.h"
#include "files/safetensors.h"
#include "support/temp_dir.h"

namespace vllm_metal::test {

struct TinyLlama {
  int hidden_size = 64;
  int intermediate_size = 96;
  int num_layers = 2;
  int num_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 16;
  int vocab_size = 128;
  bool tied = true;
  bool attention_bias = false;
  mx::Dtype dtype = mx::float32;          // of weights, or of scales and biases where quantised
  std::optional<int> bits;                // quantised, groups of 32
  std::map<std::string, int> other_bits;  // module name -> bits

  std::string config_json() const;
  // Tensors by name, all evaluated.
  std::map<std::string, mx::array> tensors() const;
  // Writes config.json and model.safetensors.
  void write(const TempDir& dir) const;
};

inline StoredDtype stored_dtype(mx::Dtype dtype) {
  if (dtype == mx::float32) return StoredDtype::kF32;
  if (dtype == mx::float16) return StoredDtype::kF16;
  if (dtype == mx::bfloat16) return StoredDtype::kBF16;
  if (dtype == mx::uint32) return StoredDtype::kU32;
  throw std::invalid_argument("dtype not expected here");
}

inline void write_safetensors(const std::filesystem::path& path,
                              const std::map<std::string, mx::array>& tensors) {
  std::vector<TensorInfo> infos;
  for (const auto& [name, array] : tensors) {
    std::vector<int64_t> shape(array.shape().begin(), array.shape().end());
    infos.push_back({name, stored_dtype(array.dtype()), shape, 0, array.nbytes()});
  }
  SafetensorsWriter writer(path, infos, {{"format", "mlx"}});
  for (const auto& [name, array] : tensors) {
    mx::array contiguous = mx::contiguous(array);
    contiguous.eval();
    writer.write({contiguous.data<std::byte>(), contiguous.nbytes()});
  }
  writer.finish();
}

inline std::string TinyLlama::config_json() const {
  std::string quantization;
  if (bits) {
    quantization = text(R"(,"quantization":{"group_size":32,"bits":)", *bits);
    for (const auto& [name, other] : other_bits)
      quantization += text(R"(,")", name, R"(":{"group_size":32,"bits":)", other, "}");
    quantization += "}";
  }
  return text(R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":)",
              hidden_size, R"(,"intermediate_size":)", intermediate_size,
              R"(,"num_hidden_layers":)", num_layers, R"(,"num_attention_heads":)", num_heads,
              R"(,"num_key_value_heads":)", num_kv_heads, R"(,"head_dim":)", head_dim,
              R"(,"vocab_size":)", vocab_size,
              R"(,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":)",
              tied ? "true" : "false", quantization, "}");
}

inline std::map<std::string, mx::array> TinyLlama::tensors() const {
  std::map<std::string, mx::array> result;
  uint64_t seed = 1;
  auto random = [&](mx::Shape shape, float center, float spread) {
    return mx::add(mx::multiply(mx::random::normal(shape, mx::float32, mx::random::key(seed++)),
                                mx::array(spread)),
                   mx::array(center));
  };
  auto matrix = [&](const std::string& name, int rows, int columns) {
    const mx::array weight = random({rows, columns}, 0, 0.1f);
    if (!bits) {
      result.emplace(name + ".weight", mx::astype(weight, dtype));
      return;
    }
    const auto other = other_bits.find(name);
    const auto packed = mx::quantize(weight, 32, other == other_bits.end() ? *bits : other->second);
    result.emplace(name + ".weight", packed[0]);
    result.emplace(name + ".scales", mx::astype(packed[1], dtype));
    result.emplace(name + ".biases", mx::astype(packed[2], dtype));
  };
  auto vector = [&](const std::string& name, int size, float center, float spread) {
    result.emplace(name, mx::astype(random({size}, center, spread), dtype));
  };
  matrix("model.embed_tokens", vocab_size, hidden_size);
  if (!tied) matrix("lm_head", vocab_size, hidden_size);
  vector("model.norm.weight", hidden_size, 1, 0.1f);
  for (int layer = 0; layer < num_layers; ++layer) {
    const std::string name = text("model.layers.", layer, ".");
    vector(name + "input_layernorm.weight", hidden_size, 1, 0.1f);
    vector(name + "post_attention_layernorm.weight", hidden_size, 1, 0.1f);
    matrix(name + "self_attn.q_proj", num_heads * head_dim, hidden_size);
    matrix(name + "self_attn.k_proj", num_kv_heads * head_dim, hidden_size);
    matrix(name + "self_attn.v_proj", num_kv_heads * head_dim, hidden_size);
    matrix(name + "self_attn.o_proj", hidden_size, num_heads * head_dim);
    if (attention_bias) {
      vector(name + "self_attn.q_proj.bias", num_heads * head_dim, 0, 0.1f);
      vector(name + "self_attn.k_proj.bias", num_kv_heads * head_dim, 0, 0.1f);
      vector(name + "self_attn.v_proj.bias", num_kv_heads * head_dim, 0, 0.1f);
      vector(name + "self_attn.o_proj.bias", hidden_size, 0, 0.1f);
    }
    matrix(name + "mlp.gate_proj", intermediate_size, hidden_size);
    matrix(name + "mlp.up_proj", intermediate_size, hidden_size);
    matrix(name + "mlp.down_proj", hidden_size, intermediate_size);
  }
  for (auto& [name, array] : result) array.eval();
  return result;
}

inline void TinyLlama::write(const TempDir& dir) const {
  dir.write("config.json", config_json());
  write_safetensors(dir.path() / "model.safetensors", tensors());
}

}  // namespace vllm_metal::test
