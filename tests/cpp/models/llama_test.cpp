// SPDX-License-Identifier: Apache-2.0
// Loading, dtypes and errors of whole models. Their numbers are compared with transformers in
// tests/parity.
#include <gmock/gmock.h>

#include <numeric>
#include <set>
#include <stdexcept>

#include "cache/contiguous_kv_cache.h"
#include "models/registry.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal {
namespace {

using test::TempDir;
using test::TinyLlama;
using testing::AllOf;
using testing::HasSubstr;

std::unique_ptr<Model> load(const TempDir& dir, const std::string& config, mx::Dtype dtype) {
  return load_model(dir.path(), ModelConfig::from_json(Json::parse(config)), dtype);
}

// A prompt of `count` tokens of one request, through the model.
struct Forward {
  Forward(const Model& model, int32_t count)
      : cache(model.kv_cache_spec(), 1024, 16),
        positions(count),
        lens{count},
        layout(make_layout(count)) {
    std::iota(positions.begin(), positions.end(), 0);
    ForwardContext context{layout, positions, lens, cache};
    hidden = model.forward(mx::array(positions.begin(), {count}, mx::int32), context);
    logits = model.logits(hidden);
  }
  BatchLayout make_layout(int32_t count) {
    cache.reserve(1, count);
    std::vector<int32_t> slots(static_cast<size_t>(count));
    std::iota(slots.begin(), slots.end(), cache.first_row(1));
    return BatchLayout({0, count}, {count}, slots, {cache.first_row(1)}, 0);
  }
  ContiguousKVCache cache;
  std::vector<int32_t> positions, lens;
  BatchLayout layout;
  mx::array hidden{0.0f}, logits{0.0f};
};

// Dtypes of all floating-point results in the graph of `array`, weights left out.
std::set<std::string> floating_dtypes(const mx::array& output) {
  std::set<std::string> names;
  std::set<std::uintptr_t> visited;
  std::vector<mx::array> stack{output};
  while (!stack.empty()) {
    const mx::array array = stack.back();
    stack.pop_back();
    if (!array.has_primitive() || !visited.insert(array.id()).second) continue;
    if (mx::issubdtype(array.dtype(), mx::floating)) names.insert(text(array.dtype()));
    for (const auto& input : array.inputs()) stack.push_back(input);
  }
  return names;
}

TEST(Llama, ActivationsKeepTheirDtypeForEveryPairOfActivationAndScaleDtype) {
  for (mx::Dtype scales : {mx::float32, mx::float16, mx::bfloat16}) {
    TempDir dir;
    TinyLlama tiny{.tied = false, .attention_bias = true, .dtype = scales, .bits = 4};
    tiny.write(dir);
    for (mx::Dtype activations : {mx::float32, mx::float16, mx::bfloat16}) {
      const auto model = load(dir, tiny.config_json(), activations);
      Forward forward(*model, 5);
      EXPECT_EQ(forward.logits.dtype(), activations);
      EXPECT_EQ(floating_dtypes(forward.logits), std::set<std::string>{text(activations)})
          << "scales " << text(scales);
    }
  }
}

TEST(Llama, QuantisedWeightsGiveTheLogitsOfTheirDequantisedTwins) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    TempDir packed, plain;
    TinyLlama tiny{.tied = bits != 4,
                   .bits = bits,
                   .other_bits = {{"model.layers.0.self_attn.k_proj", bits == 8 ? 4 : 8}}};
    tiny.write(packed);
    auto tensors = tiny.tensors();
    std::map<std::string, mx::array> dequantized;
    for (const auto& [name, array] : tensors) {
      if (name.ends_with(".scales") || name.ends_with(".biases")) continue;
      const std::string module = name.substr(0, name.rfind('.'));
      const auto other = tiny.other_bits.find(module);
      const int own_bits = other == tiny.other_bits.end() ? bits : other->second;
      const auto scales = tensors.find(module + ".scales");
      dequantized.emplace(name, scales == tensors.end()
                                    ? array
                                    : mx::dequantize(array, scales->second,
                                                     tensors.at(module + ".biases"), 32, own_bits));
    }
    for (auto& [name, array] : dequantized) array.eval();
    test::write_safetensors(plain.path() / "model.safetensors", dequantized);
    TinyLlama plain_config = tiny;
    plain_config.bits.reset();
    Forward expected(*load(plain, plain_config.config_json(), mx::float32), 12);
    Forward got(*load(packed, tiny.config_json(), mx::float32), 12);
    const float worst = mx::max(mx::abs(mx::subtract(expected.logits, got.logits))).item<float>();
    EXPECT_LE(worst, 1e-4f * mx::max(mx::abs(expected.logits)).item<float>()) << bits << " bits";
  }
}

// Three requests, whose keys and values are as if all outputs were wanted.
TEST(Llama, OutputsOfSomeRequestsAreThoseOfAll) {
  TempDir dir;
  TinyLlama tiny{.num_layers = 3, .attention_bias = true};
  tiny.write(dir);
  const auto model = load(dir, tiny.config_json(), mx::float32);
  const std::vector<int32_t> starts{0, 5, 6, 13}, lens{5, 1, 7};
  std::vector<int32_t> positions, tokens(13), slots, tables;
  std::iota(tokens.begin(), tokens.end(), 20);
  struct Result {
    mx::array hidden, keys, values;
  };
  const auto run = [&](std::vector<int> requests, std::vector<int32_t> rows) {
    ContiguousKVCache cache(model->kv_cache_spec(), 1024, 16);
    positions.clear(), slots.clear(), tables.clear();
    for (size_t i = 0; i < lens.size(); ++i) {
      cache.reserve(i + 1, lens[i]);
      tables.push_back(cache.first_row(i + 1));
      for (int32_t position = 0; position < lens[i]; ++position) {
        positions.push_back(position);
        slots.push_back(tables.back() + position);
      }
    }
    const BatchLayout layout(starts, lens, slots, tables, 0);
    const OutputTokens outputs{mx::array(rows.begin(), {static_cast<int>(rows.size())}, mx::int32),
                               layout_of_last_tokens(layout, requests)};
    ForwardContext context{layout, positions, lens, cache,
                           requests.size() < 3 ? &outputs : nullptr};
    mx::array hidden = model->forward(mx::array(tokens.begin(), {13}, mx::int32), context);
    if (context.outputs == nullptr) hidden = mx::take(hidden, outputs.rows, 0);
    hidden.eval();
    const KVView last = cache.view(2, layout);
    const mx::array written(slots.begin(), {13}, mx::int32);
    return Result{hidden, mx::take(last.keys, written, 0), mx::take(last.values, written, 0)};
  };
  const Result all = run({0, 1, 2}, {4, 5, 12});
  const Result some = run({0, 2}, {4, 12});
  const auto is_close = [](const mx::array& a, const mx::array& b) {
    return mx::allclose(a, b, 1e-5, 1e-6).item<bool>();
  };
  EXPECT_EQ(some.hidden.shape(), (mx::Shape{2, tiny.hidden_size}));
  EXPECT_TRUE(is_close(some.hidden, mx::take(all.hidden, mx::array({0, 2}), 0)));
  EXPECT_TRUE(is_close(some.keys, all.keys));
  EXPECT_TRUE(is_close(some.values, all.values));
}

TEST(Llama, PaddedVocabularyIsCutOff) {
  TempDir dir;
  TinyLlama tiny{.tied = false};
  auto tensors = tiny.tensors();
  const auto padding = mx::full({6, tiny.hidden_size}, 1e6f, mx::float32);
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"})
    tensors.at(name) = mx::concatenate({tensors.at(name), padding}, 0);
  for (auto& [name, array] : tensors) array.eval();
  test::write_safetensors(dir.path() / "model.safetensors", tensors);
  Forward forward(*load(dir, tiny.config_json(), mx::float32), 3);
  EXPECT_EQ(forward.logits.shape(), (mx::Shape{3, tiny.vocab_size}));
  EXPECT_LT(mx::max(mx::abs(forward.logits)).item<float>(), 1e4f);
}

// Configs say so of heads of their own, and do not of copies: the tensors decide.
TEST(Llama, AHeadIsTiedIfItIsTheEmbedding) {
  for (const std::optional<int> bits : {std::optional<int>{}, std::optional<int>{4}}) {
    const auto logits_and_bytes = [](const TinyLlama& tiny, bool says_tied, bool copied) {
      auto tensors = tiny.tensors();
      if (copied) {
        for (const char* suffix : {".weight", ".scales", ".biases"}) {
          const auto found = tensors.find(text("model.embed_tokens", suffix));
          if (found != tensors.end())
            tensors.insert_or_assign(text("lm_head", suffix), found->second);
        }
      }
      TempDir dir;
      test::write_safetensors(dir.path() / "model.safetensors", tensors);
      TinyLlama config = tiny;
      config.tied = says_tied;
      uint64_t read = 0;
      const auto model =
          load_model(dir.path(), ModelConfig::from_json(Json::parse(config.config_json())),
                     mx::float32, {.progress = [&](uint64_t done, uint64_t) { read = done; }});
      Forward forward(*model, 4);
      forward.logits.eval();
      return std::pair(forward.logits, read);
    };
    const TinyLlama tied{.bits = bits}, own{.tied = false, .bits = bits};
    const auto [expected, fewest] = logits_and_bytes(tied, true, false);
    for (const bool says_tied : {false, true}) {
      const auto [logits, bytes] = logits_and_bytes(tied, says_tied, true);
      EXPECT_TRUE(mx::array_equal(logits, expected).item<bool>());
      EXPECT_EQ(bytes, fewest);
    }
    const auto [of_own, more] = logits_and_bytes(own, false, false);
    EXPECT_TRUE(mx::array_equal(logits_and_bytes(own, true, false).first, of_own).item<bool>());
    EXPECT_FALSE(mx::array_equal(of_own, expected).item<bool>());
    EXPECT_GT(more, fewest);
  }
}

class LlamaErrors : public testing::Test {
 protected:
  std::string error(const std::map<std::string, mx::array>& tensors, const std::string& config) {
    TempDir dir;
    test::write_safetensors(dir.path() / "model.safetensors", tensors);
    try {
      load(dir, config, mx::float32);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "no error";
  }
  TinyLlama tiny_;
};

TEST_F(LlamaErrors, MissingSurplusAndMisshapedTensorsAreNamed) {
  auto tensors = tiny_.tensors();
  tensors.erase("model.layers.1.mlp.up_proj.weight");
  EXPECT_THAT(error(tensors, tiny_.config_json()),
              HasSubstr("model.layers.1.mlp.up_proj.weight is missing"));

  tensors = tiny_.tensors();
  tensors.emplace("model.layers.7.extra.weight", mx::zeros({2}));
  EXPECT_THAT(error(tensors, tiny_.config_json()), HasSubstr("model.layers.7.extra.weight"));

  tensors = tiny_.tensors();
  tensors.at("model.norm.weight") = mx::zeros({3});
  EXPECT_THAT(error(tensors, tiny_.config_json()),
              AllOf(HasSubstr("model.norm.weight"), HasSubstr("[64]"), HasSubstr("[3]")));

  tensors = tiny_.tensors();
  tensors.at("model.embed_tokens.weight") = mx::zeros({100, 64});
  EXPECT_THAT(error(tensors, tiny_.config_json()),
              AllOf(HasSubstr("vocab_size (128)"), HasSubstr("[100, 64]")));
}

TEST_F(LlamaErrors, QuantisationThatConfigAndFilesDisagreeOnIsNamed) {
  TinyLlama quantized{.bits = 4};
  EXPECT_THAT(error(quantized.tensors(), tiny_.config_json()), HasSubstr("no quantization for"));
  TinyLlama other{.bits = 8};
  EXPECT_THAT(error(quantized.tensors(), other.config_json()),
              AllOf(HasSubstr("model.embed_tokens.weight"), HasSubstr("shape")));
}

TEST_F(LlamaErrors, TensorsOfWrongDtypesAreNamed) {
  auto tensors = tiny_.tensors();
  tensors.at("model.norm.weight") = mx::ones({64}, mx::uint32);
  EXPECT_THAT(error(tensors, tiny_.config_json()),
              AllOf(HasSubstr("model.norm.weight"), HasSubstr("floating point but has U32")));
  const TinyLlama quantized{.bits = 4};
  tensors = quantized.tensors();
  mx::array& weight = tensors.at("model.layers.0.mlp.down_proj.weight");
  weight = mx::view(weight, mx::float32);
  EXPECT_THAT(error(tensors, quantized.config_json()),
              HasSubstr("mlp.down_proj.weight is quantised and must be U32"));
  tensors = quantized.tensors();
  mx::array& scales = tensors.at("model.layers.0.mlp.down_proj.scales");
  scales = mx::view(scales, mx::uint32);
  EXPECT_THAT(error(tensors, quantized.config_json()),
              HasSubstr("mlp.down_proj.scales and .biases must have numbers of floating point"));
}

TEST_F(LlamaErrors, UnsupportedArchitecturesAndSettingsAreNamed) {
  auto replaced = [&](std::string from, std::string to) {
    std::string config = tiny_.config_json();
    return config.replace(config.find(from), from.size(), to);
  };
  EXPECT_THAT(
      error(tiny_.tensors(), replaced("LlamaForCausalLM", "FooForCausalLM")),
      AllOf(HasSubstr("'FooForCausalLM'"), HasSubstr("LlamaForCausalLM, MistralForCausalLM")));
  EXPECT_THAT(error(tiny_.tensors(),
                    replaced("\"rms_norm_eps\"", "\"sliding_window\":4096,\"rms_norm_eps\"")),
              HasSubstr("sliding_window"));
  EXPECT_THAT(error(tiny_.tensors(),
                    replaced("\"rms_norm_eps\"", "\"hidden_act\":\"gelu\",\"rms_norm_eps\"")),
              HasSubstr("'gelu'"));
}

}  // namespace
}  // namespace vllm_metal
