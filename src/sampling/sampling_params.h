// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace vllm_metal {

// How one request's tokens are drawn. Meanings and defaults are those of vLLM's SamplingParams.
struct SamplingParams {
  float temperature = 1.0f;                    // below kGreedyTemperature: the most likely token
  float top_p = 1.0f;                          // (0, 1]; 1 keeps all
  int top_k = 0;                               // 0 or -1 keeps all
  float min_p = 0.0f;                          // [0, 1], relative to the most likely token
  std::optional<int64_t> seed = std::nullopt;  // unset: another draw each time

  float presence_penalty = 0.0f;    // subtracted once from tokens generated before
  float frequency_penalty = 0.0f;   // subtracted for each time a token was generated
  float repetition_penalty = 1.0f;  // > 0; divides the logits of tokens of prompt and output

  std::vector<std::pair<int32_t, float>> logit_bias = {};  // token id, what is added
  std::optional<std::vector<int32_t>> allowed_token_ids = std::nullopt;
  std::vector<std::vector<int32_t>> bad_words_token_ids = {};  // sequences never completed
  int min_tokens = 0;  // before this many, no stop token is drawn
  // The end of sequence and what the user added; those that are no tokens of the model's count for
  // nothing.
  std::vector<int32_t> all_stop_token_ids = {};
  bool has_grammar = false;                                 // its bitmask comes with every draw
  std::optional<int> thinking_token_budget = std::nullopt;  // tokens between the reasoning marks

  std::optional<int> num_logprobs = std::nullopt;  // unset: none; -1: the whole vocabulary
  std::vector<int32_t> logprob_token_ids = {};     // these instead of the most likely

  std::optional<int> num_prompt_logprobs = std::nullopt;  // likewise, for each token of the prompt
  // Scores of the given ids for prompt rows from prompt_logprob_start on, row-major
  // [num_rows, prompt_logprob_ids_per_row]; -1 is padding and scores -inf.
  std::vector<int32_t> prompt_logprob_token_ids = {};
  int prompt_logprob_ids_per_row = 0;
  int prompt_logprob_start = 0;

  static constexpr float kGreedyTemperature = 1e-5f;
  bool is_greedy() const { return temperature < kGreedyTemperature; }
  // Whether each token is the most likely of the model's logits as they are.
  bool takes_most_likely() const;

  // Throws std::invalid_argument naming the parameter, its value and what is allowed.
  void validate() const;
};

}  // namespace vllm_metal
