// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <stdexcept>
#include <string_view>
#include <tuple>

#include "common/text.h"
#include "files/gguf_blocks.h"
#include "files/gguf_import.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

// What a tensor name of GGUF stands for.
struct Target {
  std::string_view module;
  int64_t rows;     // 0: the weight has one dimension, [columns]
  int64_t columns;  // of the weight; the bias has [rows]
  int64_t interleaved_heads = 0;
  bool may_be_absent = false;
};

using Targets = std::map<std::string_view, Target>;

Targets layer_targets(const LlamaHyperparameters& m) {
  const int64_t query = m.num_attention_heads * m.head_dim;
  const int64_t key = m.num_key_value_heads * m.head_dim;
  return {
      {"attn_norm", {"input_layernorm", 0, m.hidden_size}},
      {"attn_q", {"self_attn.q_proj", query, m.hidden_size, m.num_attention_heads}},
      {"attn_k", {"self_attn.k_proj", key, m.hidden_size, m.num_key_value_heads}},
      {"attn_v", {"self_attn.v_proj", key, m.hidden_size}},
      {"attn_output", {"self_attn.o_proj", m.hidden_size, query}},
      {"ffn_norm", {"post_attention_layernorm", 0, m.hidden_size}},
      {"ffn_gate", {"mlp.gate_proj", m.intermediate_size, m.hidden_size}},
      {"ffn_up", {"mlp.up_proj", m.intermediate_size, m.hidden_size}},
      {"ffn_down", {"mlp.down_proj", m.hidden_size, m.intermediate_size}},
  };
}

Targets model_targets(const LlamaHyperparameters& m) {
  return {
      {"token_embd", {"model.embed_tokens", m.vocab_size, m.hidden_size}},
      {"output_norm", {"model.norm", 0, m.hidden_size}},
      // Absent: the embedding is used.
      {"output", {"lm_head", m.vocab_size, m.hidden_size, 0, true}},
  };
}

// "blk.12.attn_q" -> {12, "attn_q"}; other names -> {-1, name}.
std::pair<int64_t, std::string_view> split_layer(std::string_view stem) {
  constexpr std::string_view kPrefix = "blk.";
  size_t dot = stem.find('.', kPrefix.size());
  if (!stem.starts_with(kPrefix) || dot == std::string_view::npos) return {-1, stem};
  int64_t layer = 0;
  auto [end, error] = std::from_chars(stem.data() + kPrefix.size(), stem.data() + dot, layer);
  bool canonical = error == std::errc() && end == stem.data() + dot && layer >= 0 &&
                   stem.substr(kPrefix.size(), dot - kPrefix.size()) == std::to_string(layer);
  if (!canonical) return {-1, stem};
  return {layer, stem.substr(dot + 1)};
}

[[noreturn]] void unknown_tensor(const std::string& name) {
  if (name == "rope_freqs.weight") {
    throw std::invalid_argument(
        "[import-gguf] tensor \"rope_freqs.weight\" scales the rotary embedding (Llama 3.1 and "
        "later), which is not supported.");
  }
  throw std::invalid_argument(
      text("[import-gguf] tensor \"", printable(name), "\" is not part of a llama model."));
}

void check_layout(const ImportedTensor& tensor, const Target& target) {
  std::vector<int64_t> wanted{target.columns};
  if (target.rows > 0) wanted = {target.rows, target.columns};
  if (tensor.parameter == "bias") wanted = {target.rows};
  if (tensor.source.shape != wanted) {
    throw std::invalid_argument(text("[import-gguf] tensor \"", tensor.source.name,
                                     "\" must have shape [", join(wanted), "] but has [",
                                     join(tensor.source.shape), "]."));
  }
  if (wanted.size() == 1 && tensor.bits() != 0) {
    throw std::invalid_argument(text("[import-gguf] tensor \"", tensor.source.name, "\" has type ",
                                     name_of(tensor.source.type),
                                     "; norms and biases must be F32, F16 or BF16."));
  }
}

ImportedTensor map_tensor(const GgufTensor& source, const LlamaHyperparameters& model,
                          const Targets& per_layer, const Targets& per_model) {
  std::string_view name = source.name;
  size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) unknown_tensor(source.name);
  std::string parameter(name.substr(dot + 1));
  auto [layer, role] = split_layer(name.substr(0, dot));
  const Targets& targets = layer < 0 ? per_model : per_layer;
  auto found = targets.find(role);
  if (found == targets.end() || layer >= model.num_hidden_layers) unknown_tensor(source.name);
  const Target& target = found->second;
  bool linear = layer >= 0 && target.rows > 0;
  if (parameter != "weight" && !(parameter == "bias" && linear)) unknown_tensor(source.name);
  std::string module(target.module);
  if (layer >= 0) module = text("model.layers.", layer, ".", target.module);
  ImportedTensor tensor{source, std::move(module), std::move(parameter), target.interleaved_heads};
  check_layout(tensor, target);
  return tensor;
}

void check_weights_present(const std::set<std::string>& names, const Targets& targets,
                           const std::string& prefix) {
  for (const auto& [role, target] : targets) {
    std::string name = text(prefix, role, ".weight");
    if (!target.may_be_absent && !names.contains(name)) {
      throw std::invalid_argument(text("[import-gguf] tensor \"", name, "\" is missing."));
    }
  }
}

// Hugging Face's Llama has biases on all linear layers of a kind or on none.
void check_biases(const std::set<std::string>& names, int64_t num_layers,
                  const std::vector<std::string_view>& roles) {
  const std::string first = text("blk.0.", roles.front(), ".bias");
  const bool wanted = names.contains(first);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    for (std::string_view role : roles) {
      std::string name = text("blk.", layer, ".", role, ".bias");
      if (names.contains(name) != wanted) {
        throw std::invalid_argument(text("[import-gguf] tensor \"", name, "\" must be ",
                                         wanted ? "present" : "absent", " like \"", first, "\"."));
      }
    }
  }
}

void check_complete(const GgufHeader& header, const LlamaHyperparameters& model,
                    const Targets& per_layer, const Targets& per_model) {
  std::set<std::string> names;
  for (const GgufTensor& tensor : header.tensors) names.insert(tensor.name);
  check_weights_present(names, per_model, "");
  for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    check_weights_present(names, per_layer, text("blk.", layer, "."));
  }
  check_biases(names, model.num_hidden_layers, {"attn_q", "attn_k", "attn_v", "attn_output"});
  check_biases(names, model.num_hidden_layers, {"ffn_gate", "ffn_up", "ffn_down"});
}

StoredDtype dense_dtype(GgmlType type) {
  switch (type) {
    case GgmlType::kF16:
      return StoredDtype::kF16;
    case GgmlType::kBF16:
      return StoredDtype::kBF16;
    default:
      return StoredDtype::kF32;
  }
}

// By falling size of elements, so that all of them are aligned in the file: float32, then the
// 32-bit words with pairs of 16-bit arrays, then 16-bit tensors.
int alignment_rank(const ImportedTensor& tensor) {
  if (tensor.bits() != 0) return 1;
  return tensor.source.type == GgmlType::kF32 ? 0 : 2;
}

}  // namespace

int ImportedTensor::bits() const { return quantized_bits(source.type); }

std::vector<TensorInfo> ImportedTensor::outputs() const {
  auto info = [this](const std::string& name, StoredDtype dtype, std::vector<int64_t> shape) {
    TensorInfo tensor;
    tensor.name = text(module, ".", name);
    tensor.dtype = dtype;
    tensor.nbytes = checked_nbytes(shape, dtype);
    tensor.shape = std::move(shape);
    return tensor;
  };
  if (bits() == 0) return {info(parameter, dense_dtype(source.type), source.shape)};
  const int64_t rows = source.shape[0];
  const int64_t columns = source.shape[1];
  return {info("weight", StoredDtype::kU32, {rows, columns * bits() / 32}),
          info("scales", StoredDtype::kF16, {rows, columns / kGgmlGroupSize}),
          info("biases", StoredDtype::kF16, {rows, columns / kGgmlGroupSize})};
}

std::vector<ImportedTensor> plan_import(const GgufHeader& header,
                                        const LlamaHyperparameters& model) {
  const Targets per_layer = layer_targets(model);
  const Targets per_model = model_targets(model);
  std::vector<ImportedTensor> tensors;
  for (const GgufTensor& source : header.tensors) {
    tensors.push_back(map_tensor(source, model, per_layer, per_model));
  }
  check_complete(header, model, per_layer, per_model);
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tuple(alignment_rank(a), a.source.offset) <
           std::tuple(alignment_rank(b), b.source.offset);
  });
  return tensors;
}

}  // namespace vllm_metal
