// SPDX-License-Identifier: Apache-2.0
// Frequencies against closed forms worked out here in double precision; the whole models are
// compared with transformers in tests/parity.
#include "layers/rotary_embedding.h"

#include <gmock/gmock.h>

#include <cmath>
#include <numbers>
#include <stdexcept>

#include "cache/contiguous_kv_cache.h"

namespace vllm_metal {
namespace {

TEST(RotaryEmbedding, PlainFrequencies) {
  const auto frequencies = RotaryEmbedding({.theta = 10000.0}, 8).inverse_frequencies(1);
  ASSERT_EQ(frequencies.size(), 4u);
  for (int i = 0; i < 4; ++i)
    EXPECT_FLOAT_EQ(frequencies[static_cast<size_t>(i)], std::pow(10000.0, -2.0 * i / 8));
}

TEST(RotaryEmbedding, LinearDividesFrequencies) {
  const auto plain = RotaryEmbedding({.theta = 500.0}, 16).inverse_frequencies(1);
  const auto scaled =
      RotaryEmbedding({.type = RopeType::kLinear, .theta = 500.0, .factor = 4.0}, 16)
          .inverse_frequencies(1);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_FLOAT_EQ(scaled[i], plain[i] / 4);
}

TEST(RotaryEmbedding, DynamicFollowsTheLengthOfTheRequest) {
  const RopeConfig config{.type = RopeType::kDynamic,
                          .theta = 10000.0,
                          .factor = 2.0,
                          .original_max_position_embeddings = 64};
  const RotaryEmbedding rope(config, 8);
  EXPECT_EQ(rope.inverse_frequencies(64),
            RotaryEmbedding({.theta = 10000.0}, 8).inverse_frequencies(1));
  const double theta = 10000.0 * std::pow(2.0 * 128 / 64 - 1, 8.0 / 6.0);
  const auto stretched = rope.inverse_frequencies(128);
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(stretched[static_cast<size_t>(i)], std::pow(theta, -2.0 * i / 8), 1e-6);
}

TEST(RotaryEmbedding, Llama3KeepsShortWavesAndStretchesLongOnes) {
  const RopeConfig config{.type = RopeType::kLlama3,
                          .theta = 10000.0,
                          .factor = 8.0,
                          .original_max_position_embeddings = 256,
                          .low_freq_factor = 1.0,
                          .high_freq_factor = 4.0};
  const auto plain = RotaryEmbedding({.theta = 10000.0}, 64).inverse_frequencies(1);
  const auto scaled = RotaryEmbedding(config, 64).inverse_frequencies(1);
  bool kept = false, blended = false, stretched = false;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2 * std::numbers::pi / plain[i];
    if (wavelength < 64) {
      EXPECT_EQ(scaled[i], plain[i]);
      kept = true;
    } else if (wavelength > 256) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i] / 8);
      stretched = true;
    } else {
      EXPECT_LE(scaled[i], plain[i]);
      EXPECT_GE(scaled[i], plain[i] / 8);
      blended = true;
    }
  }
  EXPECT_TRUE(kept && blended && stretched);
}

TEST(RotaryEmbedding, YarnRampsBetweenPlainAndInterpolated) {
  const RopeConfig config{.type = RopeType::kYarn,
                          .theta = 10000.0,
                          .factor = 4.0,
                          .original_max_position_embeddings = 512};
  const auto plain = RotaryEmbedding({.theta = 10000.0}, 64).inverse_frequencies(1);
  const auto scaled = RotaryEmbedding(config, 64).inverse_frequencies(1);
  EXPECT_FLOAT_EQ(scaled.front(), plain.front());
  EXPECT_FLOAT_EQ(scaled.back(), plain.back() / 4);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_LE(scaled[i], plain[i] * 1.000001f);
    EXPECT_GE(scaled[i], plain[i] / 4.000001f);
  }
}

TEST(RotaryEmbedding, CosinesAndSinesOfEachTokensPosition) {
  const RotaryEmbedding rope({.type = RopeType::kYarn,
                              .theta = 100.0,
                              .factor = 1.0,
                              .original_max_position_embeddings = 512,
                              .attention_factor = 1.5},
                             4);
  ContiguousKVCache cache({1, 1, 4, mx::float32}, 16, 16);  // not used
  const BatchLayout layout({0, 2, 3}, {2, 8}, {0, 1, 9}, {0, 2}, 0);
  const std::vector<int32_t> positions{0, 1, 7}, lens{2, 8};
  const ForwardContext context{layout, positions, lens, cache};
  mx::array table = rope.cos_sin(context);
  ASSERT_EQ(table.shape(), (mx::Shape{3, 4}));
  const auto frequencies = rope.inverse_frequencies(1);
  for (size_t token = 0; token < 3; ++token)
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(table.data<float>()[token * 4 + i],
                  1.5 * std::cos(positions[token] * frequencies[i]), 1e-6);
      EXPECT_NEAR(table.data<float>()[token * 4 + 2 + i],
                  1.5 * std::sin(positions[token] * frequencies[i]), 1e-6);
    }
}

TEST(RotaryEmbedding, RefusesOddDimensions) {
  EXPECT_THROW(RotaryEmbedding({}, 7), std::invalid_argument);
  // One that no integer holds, too.
  for (double factor : {0.01, 1.1, 1e300})
    EXPECT_THROW(RotaryEmbedding({.partial_rotary_factor = factor}, 64), std::invalid_argument);
}

}  // namespace
}  // namespace vllm_metal
