// SPDX-License-Identifier: Apache-2.0
// Tokens as tests of a runner make and name them.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "sampling/sampling_params.h"

namespace vllm_metal::test {

using Tokens = std::vector<int32_t>;

inline const SamplingParams kGreedy{.temperature = 0.0f};

// Random ones of a TinyLlama's vocabulary, others for each seed.
inline Tokens prompt(int seed, int length) {
  std::mt19937 random(static_cast<unsigned>(seed));
  Tokens tokens;
  for (int i = 0; i < length; ++i) tokens.push_back(static_cast<int32_t>(random() % 128));
  return tokens;
}

inline int32_t length(const Tokens& tokens) { return static_cast<int32_t>(tokens.size()); }

inline Tokens operator+(Tokens tokens, const Tokens& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

}  // namespace vllm_metal::test
