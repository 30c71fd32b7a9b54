// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "files/gguf_blocks.h"
#include "files/safetensors.h"
#include "temporary_directory.h"
#include "tiny_gguf.h"

namespace vllm_metal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class GgufImportTest : public ::testing::Test {
 protected:
  GgufImport open(const GgufBuilder& file) {
    write_file(dir_ / "x.gguf", file.build());
    return GgufImport(dir_ / "x.gguf");
  }

  void expect_error(const GgufBuilder& file, const std::string& message) {
    EXPECT_THAT([&] { open(file); }, ThrowsMessage<std::invalid_argument>(HasSubstr(message)));
  }

  // Imports, and returns the tensors written by name.
  std::map<std::string, std::string> imported(const GgufImport& import) {
    std::filesystem::remove(dir_ / "out");
    import.write(dir_ / "out", {});
    const std::string file = read_file(dir_ / "out");
    std::map<std::string, std::string> tensors;
    for (const TensorInfo& tensor : read_safetensors_header(dir_ / "out").tensors) {
      tensors[tensor.name] = file.substr(tensor.offset, tensor.nbytes);
    }
    return tensors;
  }

  TemporaryDirectory dir_;
};

const GgufBuilder::Tensor& find(const GgufBuilder& file, const std::string& name) {
  return *std::find_if(file.tensors.begin(), file.tensors.end(),
                       [&](const auto& tensor) { return tensor.name == name; });
}

GgufBuilder without(GgufBuilder file, const std::string& name) {
  std::erase_if(file.tensors, [&](const auto& tensor) { return tensor.name == name; });
  return file;
}

// llama.cpp's order of the rows of a head, from the two halves to pairs.
std::string interleave(const std::string& rows, size_t num_heads, size_t num_rows) {
  const size_t row_bytes = rows.size() / num_rows;
  const size_t half = num_rows / num_heads / 2;
  std::string out;
  for (size_t head = 0; head < num_heads; ++head) {
    for (size_t pair = 0; pair < half; ++pair) {
      for (size_t part = 0; part < 2; ++part) {
        out += rows.substr(((head * 2 + part) * half + pair) * row_bytes, row_bytes);
      }
    }
  }
  return out;
}

TEST_F(GgufImportTest, ReadsHyperparameters) {
  GgufImport import = open(TinyGguf{}.file());
  EXPECT_EQ(import.model().vocab_size, 10);
  EXPECT_EQ(import.model().head_dim, 16);
  EXPECT_EQ(import.model().num_key_value_heads, 2);
  EXPECT_EQ(import.model().max_position_embeddings, 128);
  EXPECT_EQ(import.model().rms_norm_eps, 1e-5f);
  EXPECT_EQ(import.model().rope_theta, 5000.0f);
}

TEST_F(GgufImportTest, NamesTensorsLikeHuggingFace) {
  GgufImport import = open(TinyGguf{.biases = true, .tied = false}.file());
  std::set<std::string> names;
  for (const auto& [name, data] : imported(import)) names.insert(name);
  std::set<std::string> wanted = {"model.embed_tokens.weight",
                                  "model.embed_tokens.scales",
                                  "model.embed_tokens.biases",
                                  "model.norm.weight",
                                  "lm_head.weight",
                                  "lm_head.scales",
                                  "lm_head.biases"};
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
      wanted.insert(std::string(layer) + norm + ".weight");
    }
    for (const char* linear :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      for (const char* part : {".weight", ".scales", ".biases", ".bias"}) {
        wanted.insert(std::string(layer) + linear + part);
      }
    }
  }
  EXPECT_EQ(names, wanted);
}

TEST_F(GgufImportTest, StoresShapesAndDtypesOfMlx) {
  GgufImport import = open(TinyGguf{}.file());
  imported(import);
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : read_safetensors_header(dir_ / "out").tensors) {
    EXPECT_EQ(tensor.offset % size_of(tensor.dtype), 0u) << tensor.name;
    bytes += tensor.nbytes;
    if (tensor.name == "model.layers.1.mlp.down_proj.weight") {
      EXPECT_EQ(tensor.dtype, StoredDtype::kU32);
      EXPECT_THAT(tensor.shape, ElementsAre(64, 12));
    } else if (tensor.name == "model.embed_tokens.weight") {
      EXPECT_THAT(tensor.shape, ElementsAre(10, 16));
    } else if (tensor.name == "model.layers.1.mlp.down_proj.scales") {
      EXPECT_EQ(tensor.dtype, StoredDtype::kF16);
      EXPECT_THAT(tensor.shape, ElementsAre(64, 3));
    } else if (tensor.name == "model.layers.0.post_attention_layernorm.weight") {
      EXPECT_EQ(tensor.dtype, StoredDtype::kF16);
    } else if (tensor.name == "model.norm.weight") {
      EXPECT_EQ(tensor.dtype, StoredDtype::kF32);
    }
  }
  EXPECT_EQ(import.output_bytes(), bytes);
  EXPECT_EQ(read_safetensors_header(dir_ / "out").metadata.at("format"), "mlx");
}

TEST_F(GgufImportTest, RestoresTheRowsOfQueriesAndKeys) {
  for (GgmlType type : {GgmlType::kQ4_1, GgmlType::kQ8_0, GgmlType::kBF16}) {
    GgufBuilder halves = TinyGguf{.linear = type, .biases = true}.file();
    GgufBuilder pairs = halves;
    for (auto& tensor : pairs.tensors) {
      bool query = tensor.name.find(".attn_q.") != std::string::npos;
      bool key = tensor.name.find(".attn_k.") != std::string::npos;
      if (query || key) tensor.data = interleave(tensor.data, query ? 4 : 2, query ? 64 : 32);
    }
    // Without heads the rows stay as they are: what the halves give is the reference.
    GgufImport import = open(halves);
    std::map<std::string, std::string> wanted;
    for (ImportedTensor tensor : import.tensors()) {
      tensor.interleaved_heads = 0;
      const std::string& data = find(halves, tensor.source.name).data;
      auto outputs = convert_tensor(tensor, std::as_bytes(std::span(data)));
      for (size_t i = 0; i < outputs.size(); ++i) {
        wanted[tensor.outputs()[i].name] = {reinterpret_cast<const char*>(outputs[i].data()),
                                            outputs[i].size()};
      }
    }
    EXPECT_EQ(imported(open(pairs)), wanted) << name_of(type);
  }
}

TEST_F(GgufImportTest, CopiesDenseTensors) {
  GgufBuilder file = TinyGguf{.embedding = GgmlType::kF16, .linear = GgmlType::kF32}.file();
  auto tensors = imported(open(file));
  EXPECT_EQ(tensors.at("model.embed_tokens.weight"), find(file, "token_embd.weight").data);
  EXPECT_EQ(tensors.at("model.layers.1.mlp.up_proj.weight"),
            find(file, "blk.1.ffn_up.weight").data);
  EXPECT_EQ(tensors.at("model.norm.weight"), find(file, "output_norm.weight").data);
}

TEST_F(GgufImportTest, ReportsProgressAndStops) {
  GgufImport import = open(TinyGguf{}.file());
  std::vector<std::pair<uint64_t, uint64_t>> calls;
  import.write(dir_ / "out",
               [&](uint64_t done, uint64_t total) { calls.emplace_back(done, total); });
  EXPECT_EQ(calls.size(), import.tensors().size());
  EXPECT_TRUE(std::is_sorted(calls.begin(), calls.end()));
  EXPECT_EQ(calls.back().first, calls.back().second);

  auto stop = [](uint64_t, uint64_t) { throw std::runtime_error("stop"); };
  EXPECT_THROW(import.write(dir_ / "stopped", stop), std::runtime_error);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "stopped"));
}  // namespace

TEST_F(GgufImportTest, RefusesOtherArchitectures) {
  GgufBuilder file;
  file.add_string("general.architecture", "qwen2");
  expect_error(file, "architecture \"qwen2\" is not supported; allowed is llama.");
  expect_error(GgufBuilder{}, "\"general.architecture\" is missing");
}

TEST_F(GgufImportTest, RefusesWhatItCannotExpress) {
  auto with = [](auto change) {
    GgufBuilder file = TinyGguf{}.file();
    change(file);
    return file;
  };
  expect_error(with([](auto& f) { f.add_u32("llama.expert_count", 8); }), "mixtures of experts");
  expect_error(with([](auto& f) { f.add_u32("llama.rope.dimension_count", 8); }),
               "must be 16 like the head size");
  expect_error(with([](auto& f) { f.add_u32("llama.vocab_size", 11); }), "must be 10");
  expect_error(with([](auto& f) { f.add_string("llama.rope.scaling.type", "yarn"); }),
               "must be \"none\"");
  expect_error(with([](auto& f) { f.add_f32("llama.logit_scale", 2); }),
               "metadata key \"llama.logit_scale\" is not supported; allowed are");
  expect_error(with([](auto& f) { f.add_u32("llama.attention.value_length", 8); }), "must be 16");
}

TEST_F(GgufImportTest, RefusesBadHyperparameters) {
  auto base = [](bool heads_array) {
    GgufBuilder file;
    file.add_string("general.architecture", "llama");
    file.add_u32("llama.embedding_length", 64);
    file.add_u32("llama.block_count", 2);
    if (heads_array) {
      file.add("llama.feed_forward_length", 9,
               GgufBuilder::bytes<uint32_t>(4) + GgufBuilder::bytes<uint64_t>(0));
    } else {
      file.add("llama.feed_forward_length", 5, GgufBuilder::bytes<int32_t>(-1));
    }
    file.add_tensor("token_embd.weight", {64, 10}, GgmlType::kF16, std::string(1280, '\0'));
    return file;
  };
  expect_error(base(true), "\"llama.feed_forward_length\" differs between layers");
  expect_error(base(false), "must be an integer from 0 to 2147483647");
  GgufBuilder file;
  file.add_string("general.architecture", "llama");
  expect_error(file, "\"token_embd.weight\" is missing");
}

TEST_F(GgufImportTest, RefusesMissingTensors) {
  GgufBuilder file = TinyGguf{.biases = true}.file();
  for (const char* name : {"output_norm.weight", "blk.0.attn_norm.weight", "blk.1.ffn_up.weight"}) {
    expect_error(without(file, name), std::string("tensor \"") + name + "\" is missing");
  }
  expect_error(without(file, "blk.1.attn_v.bias"),
               "tensor \"blk.1.attn_v.bias\" must be present like \"blk.0.attn_q.bias\"");
  expect_error(without(file, "blk.0.ffn_gate.bias"),
               "tensor \"blk.0.ffn_up.bias\" must be absent like \"blk.0.ffn_gate.bias\"");
}

TEST_F(GgufImportTest, RefusesUnknownTensors) {
  for (const char* name : {"blk.2.attn_q.weight", "blk.00.attn_q.weight", "blk.-1.attn_q.weight",
                           "blk.x.attn_q.weight", "blk.0.attn_qkv.weight", "output.bias",
                           "blk.0.attn_norm.bias", "blk.0.attn_q.scale", "attn_q.weight", "weight",
                           "blk.99999999999999999999.attn_q.weight", "blk..weight"}) {
    GgufBuilder file = TinyGguf{}.file();
    file.add_tensor(name, {64}, GgmlType::kF32, std::string(256, '\0'));
    expect_error(file, std::string("tensor \"") + name + "\" is not part of a llama model");
  }
  GgufBuilder file = TinyGguf{}.file();
  file.add_tensor("rope_freqs.weight", {8}, GgmlType::kF32, std::string(32, '\0'));
  expect_error(file, "\"rope_freqs.weight\" scales the rotary embedding");
}

TEST_F(GgufImportTest, RefusesOtherShapesAndQuantisedNorms) {
  auto changed = [](const std::string& name, std::vector<uint64_t> dimensions, GgmlType type) {
    GgufBuilder file = without(TinyGguf{}.file(), name);
    file.add_tensor(name, dimensions, type, std::string(65536, '\0'));
    return file;
  };
  expect_error(changed("blk.0.attn_k.weight", {64, 64}, GgmlType::kF16),
               "\"blk.0.attn_k.weight\" must have shape [32, 64] but has [64, 64]");
  expect_error(changed("blk.0.attn_norm.weight", {64, 1}, GgmlType::kF32), "must have shape [64]");
  expect_error(changed("blk.0.attn_norm.weight", {64}, GgmlType::kQ8_0),
               "has type Q8_0; norms and biases must be F32, F16 or BF16");
}

TEST_F(GgufImportTest, NamesTheTensorThatCannotBeRepresented) {
  GgufBuilder file = TinyGguf{}.file();
  const_cast<GgufBuilder::Tensor&>(find(file, "blk.1.ffn_down.weight")).data[19] = 0x7b;
  GgufImport import = open(file);
  EXPECT_THAT(
      [&] { import.write(dir_ / "out", {}); },
      ThrowsMessage<std::invalid_argument>(HasSubstr("tensor \"blk.1.ffn_down.weight\": ")));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "out"));
}

}  // namespace
}  // namespace vllm_metal
