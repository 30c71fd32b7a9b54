// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "files/gguf.h"
#include "files/gguf_llama.h"
#include "files/input_file.h"
#include "files/tensor_info.h"

namespace vllm_metal {

// How one tensor of a GGUF file is stored in the model directory.
struct ImportedTensor {
  GgufTensor source;
  std::string module;     // Hugging Face's path, "model.layers.0.self_attn.q_proj"
  std::string parameter;  // "weight" or "bias"
  // Positive: llama.cpp keeps the rows of each of these heads in pairs for its interleaved rotary
  // embedding; Hugging Face's order, first and second half, is restored.
  int64_t interleaved_heads = 0;

  int bits() const;  // of an element in MLX's affine form; 0: stored as it is
  // Quantised: weight, scales and biases; else one.
  std::vector<TensorInfo> outputs() const;
};

// Names, order and layout of all tensors. Throws std::invalid_argument naming a tensor that is
// unknown, missing, or has another shape than `model` implies.
std::vector<ImportedTensor> plan_import(const GgufHeader& header,
                                        const LlamaHyperparameters& model);

// The outputs of `tensor` one after the other, from its bytes in the GGUF file. Throws
// std::invalid_argument naming the tensor when it cannot be represented exactly.
std::vector<std::vector<std::byte>> convert_tensor(const ImportedTensor& tensor,
                                                   std::span<const std::byte> source);

// A GGUF file on its way into a safetensors file of MLX's community format.
class GgufImport {
 public:
  // In bytes of the GGUF file. May throw to stop the import.
  using Progress = std::function<void(uint64_t done, uint64_t total)>;

  // Reads and checks everything but the tensors' data.
  explicit GgufImport(const std::filesystem::path& path);

  const GgufHeader& header() const { return header_; }
  const LlamaHyperparameters& model() const { return model_; }
  const std::vector<ImportedTensor>& tensors() const { return tensors_; }
  uint64_t output_bytes() const;  // of all tensors written

  // Writes `path`, which must not exist, tensor by tensor; whatever throws removes it again.
  void write(const std::filesystem::path& path, const Progress& progress) const;

 private:
  InputFile file_;
  GgufHeader header_;
  LlamaHyperparameters model_;
  std::vector<ImportedTensor> tensors_;
};

}  // namespace vllm_metal
