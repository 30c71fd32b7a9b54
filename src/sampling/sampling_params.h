// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

namespace vllm_metal {

// How one request's tokens are drawn. Meanings and defaults are those of vLLM's SamplingParams.
struct SamplingParams {
  float temperature = 1.0f;                    // below kGreedyTemperature: the most likely token
  float top_p = 1.0f;                          // (0, 1]; 1 keeps all
  int top_k = 0;                               // 0 or -1 keeps all
  std::optional<int64_t> seed = std::nullopt;  // unset: another draw each time
  std::optional<int> num_logprobs = std::nullopt;  // unset: none; -1: the whole vocabulary

  static constexpr float kGreedyTemperature = 1e-5f;
  bool is_greedy() const { return temperature < kGreedyTemperature; }

  // Throws std::invalid_argument naming the parameter, its value and what is allowed.
  void validate() const;
};

}  // namespace vllm_metal
