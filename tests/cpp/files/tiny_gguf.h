// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <random>
#include <string>
#include <vector>

#include "files/gguf.h"
#include "gguf_builder.h"

namespace vllm_metal {

// A llama model of two layers: hidden 64, 4 heads of 16 (2 for keys), intermediate 96, 10 tokens.
struct TinyGguf {
  GgmlType embedding = GgmlType::kQ8_0;
  GgmlType linear = GgmlType::kQ4_0;
  bool biases = false;
  bool tied = true;
  std::mt19937 random{7};

  // Random bytes with small, finite scales.
  std::string data(GgmlType type, uint64_t elements) {
    uint64_t blocks = elements / static_cast<uint64_t>(elements_per_block(type));
    std::string out(blocks * bytes_per_block(type), '\0');
    for (char& byte : out) byte = static_cast<char>(random());
    for (uint64_t i = 0; i < blocks; ++i) {
      char* block = out.data() + i * bytes_per_block(type);
      block[1] = static_cast<char>(0x20 | (random() & 7));
      if (type == GgmlType::kQ4_1) block[3] = static_cast<char>(0x20 | (random() & 7));
    }
    return out;
  }

  void add(GgufBuilder& file, const std::string& name, uint64_t columns, uint64_t rows,
           GgmlType type) {
    std::vector<uint64_t> dimensions{columns};
    if (rows > 0) dimensions.push_back(rows);
    file.add_tensor(name, dimensions, type, data(type, columns * (rows > 0 ? rows : 1)));
  }

  void add_linear(GgufBuilder& file, const std::string& name, uint64_t columns, uint64_t rows) {
    add(file, name + ".weight", columns, rows, linear);
    if (biases) add(file, name + ".bias", rows, 0, GgmlType::kF32);
  }

  void add_layer(GgufBuilder& file, const std::string& prefix) {
    add(file, prefix + "attn_norm.weight", 64, 0, GgmlType::kF32);
    add_linear(file, prefix + "attn_q", 64, 64);
    add_linear(file, prefix + "attn_k", 64, 32);
    add_linear(file, prefix + "attn_v", 64, 32);
    add_linear(file, prefix + "attn_output", 64, 64);
    add(file, prefix + "ffn_norm.weight", 64, 0, GgmlType::kF16);
    add_linear(file, prefix + "ffn_gate", 64, 96);
    add_linear(file, prefix + "ffn_up", 64, 96);
    add_linear(file, prefix + "ffn_down", 96, 64);
  }

  GgufBuilder file() {
    GgufBuilder file;
    file.add_string("general.architecture", "llama");
    file.add_u32("llama.embedding_length", 64);
    file.add_u32("llama.feed_forward_length", 96);
    file.add_u32("llama.block_count", 2);
    file.add_u32("llama.attention.head_count", 4);
    file.add_u32("llama.attention.head_count_kv", 2);
    file.add_u32("llama.context_length", 128);
    file.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    file.add_f32("llama.rope.freq_base", 5000.0f);
    add(file, "token_embd.weight", 64, 10, embedding);
    add_layer(file, "blk.0.");
    add_layer(file, "blk.1.");
    add(file, "output_norm.weight", 64, 0, GgmlType::kF32);
    if (!tied) add(file, "output.weight", 64, 10, linear);
    return file;
  }
};

}  // namespace vllm_metal
