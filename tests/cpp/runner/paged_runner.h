// SPDX-License-Identifier: Apache-2.0
// What the tests of a runner with a paged KV cache share: it, one with the MLX-managed cache, where
// each request has its own, and comparisons of answers and logits.
#pragma once

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <vector>

#include "runner/model_runner.h"
#include "runner/prompt_tokens.h"
#include "support/block_scheduler.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal::test {

constexpr int64_t kNumBlocks = 60;

class PagedRunnerBase : public testing::Test {
 protected:
  explicit PagedRunnerBase(int block_size, mx::Dtype dtype = mx::float32)
      : dtype_(dtype), blocks_(kNumBlocks, block_size) {
    TinyLlama{.num_layers = 3}.write(dir_);
    managed_ = make_runner();
    managed_->initialize_kv_cache(100000, 16);
    managed_->keep_logits(true);
    runner_ = make_runner();
    runner_->initialize_paged_kv_cache(kNumBlocks, block_size);
    runner_->check_invariants(true);
    runner_->keep_logits(true);
  }

  std::unique_ptr<ModelRunner> make_runner() const {
    return std::make_unique<ModelRunner>(
        ModelRunnerOptions{dir_.path(), read_model_config(dir_.path()), dtype_, {}, {}});
  }

  // Of logits, which are below 10 here.
  float tolerance() const {
    return dtype_ == mx::float32 ? 1e-5f : dtype_ == mx::float16 ? 1e-2f : 8e-2f;
  }

  // On the MLX-managed cache: the answer to a prompt, of one token or more.
  Tokens alone(const Tokens& prompt, size_t num_tokens) {
    Tokens answer;
    StepInput input{.new_requests = {{"alone", prompt, kGreedy}},
                    .scheduled = {{"alone", 0, length(prompt)}}};
    for (; answer.size() < num_tokens;
         input = {.scheduled = {{"alone", length(prompt) + length(answer) - 1, 1}}})
      answer.push_back(managed_->step(input).token_ids.at(0));
    return answer;
  }

  StepOutput step(const StepInput& input) { return runner_->step(blocks_.with_blocks(input)); }
  PendingOutput start(const StepInput& input) {
    runner_->launch(blocks_.with_blocks(input));
    return runner_->draw();
  }

  // The last step's logits, row by row, are those of the prompts alone.
  void expect_logits_of(const std::vector<Tokens>& prompts) {
    const mx::array found = runner_->last_logits().value();
    ASSERT_EQ(found.shape(0), static_cast<int>(prompts.size()));
    for (int row = 0; row < found.shape(0); ++row) {
      alone(prompts[static_cast<size_t>(row)], 1);
      const mx::array logits = mx::slice(found, {row, 0}, {row + 1, found.shape(1)});
      mx::array difference =
          mx::max(mx::abs(mx::subtract(logits, managed_->last_logits().value())));
      EXPECT_LE(difference.item<float>(), tolerance()) << "row " << row;
    }
  }

  // Decodes that follow are those of the prompt alone, too.
  void expect_answer(const std::string& id, const Tokens& prompt, int32_t first_token) {
    const Tokens expected = alone(prompt, 5);
    Tokens answer{first_token};
    while (answer.size() < expected.size())
      answer.push_back(
          step({.scheduled = {{id, length(prompt) + length(answer) - 1, 1}}}).token_ids.at(0));
    EXPECT_EQ(answer, expected) << id;
  }

  TempDir dir_;
  mx::Dtype dtype_;
  std::unique_ptr<ModelRunner> managed_, runner_;
  BlockScheduler blocks_;
};

// The parameter is the block size.
class PagedRunnerTest : public PagedRunnerBase, public testing::WithParamInterface<int> {
 protected:
  PagedRunnerTest() : PagedRunnerBase(GetParam()) {}
};

}  // namespace vllm_metal::test
