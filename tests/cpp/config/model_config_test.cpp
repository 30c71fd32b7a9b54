// SPDX-License-Identifier: Apache-2.0
#include "config/model_config.h"

#include <gmock/gmock.h>

#include <cmath>
#include <regex>
#include <stdexcept>
#include <string>

namespace vllm_metal {
namespace {

using testing::HasSubstr;

// A complete config; `extra` is put in front of its members, so that it can replace none.
ModelConfig parse(const std::string& members) {
  return ModelConfig::from_json(Json::parse("{" + members + "}"));
}

const std::string kBase =
    R"("architectures":["LlamaForCausalLM"],"hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,
       "num_attention_heads":9,"num_key_value_heads":3,"vocab_size":49152,"rms_norm_eps":1e-05)";

std::string error_of(const std::string& members) {
  try {
    parse(members);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

// The members with the value of `key` (no object) replaced, or with the key left out.
std::string with(const std::string& key, const std::string& value) {
  return std::regex_replace(kBase, std::regex('"' + key + R"("\s*:\s*(\[[^\]]*\]|[^,\s]+))"),
                            '"' + key + "\":" + value);
}
std::string without(const std::string& key) {
  return std::regex_replace(kBase, std::regex('"' + key + R"("\s*:\s*(\[[^\]]*\]|[^,\s]+)(,|$))"),
                            "");
}

TEST(ModelConfig, ReadsHuggingFaceKeys) {
  const ModelConfig config =
      parse(kBase + R"(,"tie_word_embeddings":true,"max_position_embeddings":8192)");
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.hidden_size, 576);
  EXPECT_EQ(config.num_key_value_heads, 3);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.max_position_embeddings, 8192);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.quantization.has_value());
}

TEST(ModelConfig, NullCountsAsAbsent) {
  const ModelConfig config = parse(with("num_key_value_heads", "null") + R"(,"head_dim":null)");
  EXPECT_EQ(config.num_key_value_heads, 9);
  EXPECT_EQ(config.head_dim, 64);
}

TEST(ModelConfig, NamesTheKeyThatLacks) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size"})
    EXPECT_THAT(error_of(without(key)), HasSubstr(key));
}

TEST(ModelConfig, RefusesValuesOutsideTheirRange) {
  EXPECT_THAT(error_of(with("hidden_size", "-5")), HasSubstr("hidden_size must be from 1"));
  EXPECT_THAT(error_of(with("vocab_size", "99999999999")), HasSubstr("vocab_size"));
  EXPECT_THAT(error_of(with("num_key_value_heads", "4")), HasSubstr("multiple"));
  EXPECT_THAT(error_of(with("hidden_size", "577")), HasSubstr("head_dim"));
  EXPECT_THAT(error_of(with("rms_norm_eps", "0")), HasSubstr("rms_norm_eps"));
}

TEST(RopeConfig, ReadsBothLayouts) {
  EXPECT_DOUBLE_EQ(parse(kBase).rope.theta, 10000.0);
  EXPECT_DOUBLE_EQ(parse(kBase + R"(,"rope_theta":100000)").rope.theta, 100000.0);
  EXPECT_DOUBLE_EQ(
      parse(kBase + R"(,"rope_parameters":{"rope_theta":1e5,"rope_type":"default"})").rope.theta,
      100000.0);
  const RopeConfig old_layout =
      parse(kBase + R"(,"rope_theta":5e5,"rope_scaling":{"type":"linear","factor":4.0})").rope;
  EXPECT_EQ(old_layout.type, RopeType::kLinear);
  EXPECT_DOUBLE_EQ(old_layout.factor, 4.0);
  EXPECT_DOUBLE_EQ(old_layout.theta, 5e5);
}

TEST(RopeConfig, ReadsLlama3AndYarn) {
  const RopeConfig llama3 =
      parse(kBase +
            R"(,"rope_parameters":{"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,
                                  "high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_theta":500000})")
          .rope;
  EXPECT_EQ(llama3.type, RopeType::kLlama3);
  EXPECT_DOUBLE_EQ(llama3.original_max_position_embeddings, 8192);
  const RopeConfig yarn =
      parse(kBase +
            R"(,"max_position_embeddings":32768,"rope_scaling":{"rope_type":"yarn","factor":4.0,
                                "original_max_position_embeddings":8192})")
          .rope;
  EXPECT_NEAR(yarn.attention_factor, 0.1 * std::log(4.0) + 1.0, 1e-12);
}

TEST(RopeConfig, RefusesUnknownTypesAndMissingKeys) {
  EXPECT_THAT(error_of(kBase + R"(,"rope_scaling":{"rope_type":"longrope","factor":2})"),
              HasSubstr("'longrope'"));
  EXPECT_THAT(error_of(kBase + R"(,"rope_scaling":{"rope_type":"linear"})"), HasSubstr("factor"));
  EXPECT_THAT(error_of(kBase + R"(,"rope_theta":-1)"), HasSubstr("rope_theta"));
}

TEST(QuantizationConfig, ReadsDefaultsAndLayers) {
  const auto config = parse(kBase +
                            R"(,"quantization":{"group_size":32,"bits":4,"mode":"affine",
                            "model.embed_tokens":{"group_size":32,"bits":8},"lm_head":false})")
                          .quantization;
  ASSERT_TRUE(config.has_value());
  EXPECT_EQ(config->spec_of("model.layers.0.mlp.up_proj"), (QuantizationSpec{32, 4}));
  EXPECT_EQ(config->spec_of("model.embed_tokens"), (QuantizationSpec{32, 8}));
  EXPECT_EQ(config->spec_of("lm_head"), std::nullopt);
}

TEST(QuantizationConfig, RefusesWhatItDoesNotRead) {
  EXPECT_THAT(error_of(kBase + R"(,"quantization_config":{"quant_method":"awq","bits":4})"),
              HasSubstr("'awq'"));
  EXPECT_THAT(error_of(kBase + R"(,"quantization":{"group_size":32,"bits":7})"),
              HasSubstr("2, 3, 4, 5, 6, 8"));
  EXPECT_THAT(error_of(kBase + R"(,"quantization":{"group_size":0,"bits":4})"),
              HasSubstr("group_size"));
  EXPECT_THAT(error_of(kBase + R"(,"quantization":{"group_size":32,"bits":4,"mode":"mxfp4"})"),
              HasSubstr("mxfp4"));
}

}  // namespace
}  // namespace vllm_metal
