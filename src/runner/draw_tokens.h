// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/mlx.h"
#include "kernels/cpu/kernel_errors.h"
#include "runner/step.h"

namespace vllm_metal {

// All that drawing the tokens of one step needs, kept until the logits are there.
struct DrawTask {
  using Clock = std::chrono::steady_clock;

  // Of each row of logits: which scheduled request it belongs to, its state, and the token where
  // the caller drew it.
  struct Row {
    size_t scheduled_index;
    std::shared_ptr<SamplingState> state;
    std::optional<int32_t> given_token;
    int32_t bitmask_row = -1;  // -1: no grammar
  };

  std::shared_ptr<const SamplerConfig> config;
  std::vector<Row> rows;
  std::vector<int32_t> bitmask;        // [num_grammars, ceil(vocab_size / 32)]
  std::shared_ptr<StepOutput> output;  // its token_ids sized and its prompt_logprobs listed
  Clock::time_point launched = Clock::now();
  // When the step before was drawn, of all steps of a runner; the drawing thread's alone.
  std::shared_ptr<Clock::time_point> last_drawn = std::make_shared<Clock::time_point>();
  std::shared_ptr<const cpu::KernelErrors> kernel_errors;  // of the step's CPU kernels
  std::promise<std::shared_ptr<StepOutput>> done;

  // Draws, keeps the promise, and writes the tokens, 0 where there is none, into `tokens`. On the
  // thread of `stream`: hands over what a kernel threw there, whose logits are no numbers of ours.
  //   logits  float32, `rows` rows of vocab_size that start `row_stride` elements apart
  void run(mx::Stream stream, const float* logits, int64_t row_stride, std::span<int32_t> tokens);
  // Hands an error over instead.
  void fail(std::exception_ptr error);
};

// The last node of a step. It runs on the CPU, on the thread of MLX's CPU stream, once the logits
// are computed and after the nodes of `after`, so that whoever launches steps need not wait for
// their tokens: the next step takes them from this node's output.
//   logits  [num_rows, vocab_size] float32; any array where there are no rows
// Returns int32 [max(num_rows, 1)].
mx::array draw_tokens(const mx::array& logits, std::vector<mx::array> after,
                      std::shared_ptr<DrawTask> task);

// A node that adds rows of logits to the scores of a prompt.
//   logits  [num_rows, vocab_size] float32, of the positions from `first_position` on
// Returns int32 [1], only good for waiting.
mx::array score_prompt(const mx::array& logits, std::shared_ptr<PromptLogprobs> scores,
                       int64_t first_position);

}  // namespace vllm_metal
