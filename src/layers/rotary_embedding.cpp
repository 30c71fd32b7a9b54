// SPDX-License-Identifier: Apache-2.0
#include "layers/rotary_embedding.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "common/mlx_buffer.h"
#include "common/text.h"

namespace vllm_metal {

namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

// theta^(-2i / dim). Rounded to float32 as checkpoints were trained with it.
std::vector<float> plain_frequencies(double theta, int dim) {
  std::vector<float> frequencies;
  for (int i = 0; i < dim; i += 2)
    frequencies.push_back(1.0f / static_cast<float>(std::pow(theta, static_cast<double>(i) / dim)));
  return frequencies;
}

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended.
float llama3_frequency(float frequency, const RopeConfig& rope) {
  const double wavelength = kTwoPi / frequency;
  const double longest_kept = rope.original_max_position_embeddings / rope.high_freq_factor;
  const double shortest_stretched = rope.original_max_position_embeddings / rope.low_freq_factor;
  if (wavelength < longest_kept) return frequency;
  if (wavelength > shortest_stretched) return static_cast<float>(frequency / rope.factor);
  const double smooth =
      (rope.original_max_position_embeddings / wavelength - rope.low_freq_factor) /
      (rope.high_freq_factor - rope.low_freq_factor);
  return static_cast<float>((1 - smooth) * frequency / rope.factor + smooth * frequency);
}

// YaRN: a ramp over the dimensions between interpolated (slow) and unchanged (fast) ones.
std::vector<float> yarn_frequencies(const RopeConfig& rope, int dim) {
  auto dimension_of = [&](double rotations) {
    return dim * std::log(rope.original_max_position_embeddings / (rotations * kTwoPi)) /
           (2 * std::log(rope.theta));
  };
  double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;  // the ramp must have a slope
  auto frequencies = plain_frequencies(rope.theta, dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] =
        static_cast<float>(frequencies[i] / rope.factor * ramp + frequencies[i] * (1 - ramp));
  }
  return frequencies;
}

int checked_rotary_dim(const RopeConfig& config, int head_dim) {
  const double product = std::trunc(head_dim * config.partial_rotary_factor);
  if (!(product >= 2 && product <= head_dim) || std::fmod(product, 2) != 0)
    throw std::invalid_argument(
        text("[rope] head_dim * partial_rotary_factor must be even and from 2 to head_dim (",
             head_dim, ") but is ", product, "."));
  const int dim = static_cast<int>(product);
  if (config.type == RopeType::kDynamic && dim == 2)
    throw std::invalid_argument("[rope] dynamic scaling needs more than 2 rotary dimensions.");
  return dim;
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(const RopeConfig& config, int head_dim)
    : config_(config), rotary_dim_(checked_rotary_dim(config, head_dim)) {
  if (config_.type == RopeType::kYarn) {
    inverse_frequencies_ = yarn_frequencies(config_, rotary_dim_);
    return;
  }
  inverse_frequencies_ = plain_frequencies(config_.theta, rotary_dim_);
  for (auto& frequency : inverse_frequencies_) {
    if (config_.type == RopeType::kLinear)
      frequency = frequency / static_cast<float>(config_.factor);
    if (config_.type == RopeType::kLlama3) frequency = llama3_frequency(frequency, config_);
  }
}

std::vector<float> RotaryEmbedding::inverse_frequencies(int request_len) const {
  const double trained_len = config_.original_max_position_embeddings;
  if (config_.type != RopeType::kDynamic || request_len <= trained_len) return inverse_frequencies_;
  const double stretch = config_.factor * request_len / trained_len - (config_.factor - 1);
  const double dim = rotary_dim_;
  return plain_frequencies(config_.theta * std::pow(stretch, dim / (dim - 2)), rotary_dim_);
}

mx::array RotaryEmbedding::cos_sin(const ForwardContext& context) const {
  const int num_tokens = context.layout.num_tokens(), half = rotary_dim_ / 2;
  const auto factor = static_cast<float>(config_.attention_factor);
  mx::array table = uninitialized({num_tokens, rotary_dim_}, mx::float32);
  float* out = table.data<float>();
  for (int request = 0; request < context.layout.num_requests(); ++request) {
    const auto frequencies =
        inverse_frequencies(context.request_lens[static_cast<size_t>(request)]);
    const auto& starts = context.layout.query_starts;
    for (int token = starts[static_cast<size_t>(request)];
         token < starts[static_cast<size_t>(request) + 1]; ++token) {
      const auto position = static_cast<float>(context.positions[static_cast<size_t>(token)]);
      float* row = out + static_cast<size_t>(token) * static_cast<size_t>(rotary_dim_);
      for (int i = 0; i < half; ++i) {
        const float angle = position * frequencies[static_cast<size_t>(i)];
        row[i] = std::cos(angle) * factor;
        row[half + i] = std::sin(angle) * factor;
      }
    }
  }
  return table;
}

}  // namespace vllm_metal
