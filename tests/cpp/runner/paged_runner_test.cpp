// SPDX-License-Identifier: Apache-2.0
// Blocks that requests share, that are copied, and that cannot be. Answers and logits are compared
// with those of the MLX-managed cache, where each request has its own.
#include <gmock/gmock.h>

#include <memory>
#include <random>
#include <stdexcept>

#include "common/mlx_buffer.h"
#include "runner/model_runner.h"
#include "support/block_scheduler.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal {
namespace {

using test::BlockScheduler;
using test::error_of;
using testing::HasSubstr;
using Tokens = std::vector<int32_t>;

const SamplingParams kGreedy{.temperature = 0.0f};
constexpr int64_t kNumBlocks = 60;

Tokens prompt(int seed, int length) {
  std::mt19937 random(static_cast<unsigned>(seed));
  Tokens tokens;
  for (int i = 0; i < length; ++i) tokens.push_back(static_cast<int32_t>(random() % 128));
  return tokens;
}

int32_t length(const Tokens& tokens) { return static_cast<int32_t>(tokens.size()); }

Tokens operator+(Tokens tokens, const Tokens& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

class PagedRunnerTest : public testing::TestWithParam<int> {
 protected:
  PagedRunnerTest() : blocks_(kNumBlocks, GetParam()) {
    test::TinyLlama{.num_layers = 3}.write(dir_);
    managed_ = make_runner();
    managed_->initialize_kv_cache(100000, 16);
    managed_->keep_logits(true);
    runner_ = make_runner();
    runner_->initialize_paged_kv_cache(kNumBlocks, GetParam());
    runner_->check_invariants(true);
    runner_->keep_logits(true);
  }

  std::unique_ptr<ModelRunner> make_runner() const {
    return std::make_unique<ModelRunner>(
        ModelRunnerOptions{dir_.path(), read_model_config(dir_.path()), mx::float32, {}, {}});
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
      EXPECT_LE(difference.item<float>(), 1e-5f) << "row " << row;
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

  test::TempDir dir_;
  std::unique_ptr<ModelRunner> managed_, runner_;
  BlockScheduler blocks_;
};

INSTANTIATE_TEST_SUITE_P(BlockSizes, PagedRunnerTest, testing::Values(8, 16, 64),
                         testing::PrintToStringParamName());

TEST_P(PagedRunnerTest, LogitsOfChunksAreThoseOfTheWhole) {
  const Tokens tokens = prompt(1, 2 * GetParam() + 7);
  for (const int32_t chunk : {1, 7, GetParam(), GetParam() + 1, length(tokens)}) {
    StepInput input{.new_requests = {{"c", tokens, kGreedy}}};
    StepOutput output;
    for (int32_t computed = 0; computed < length(tokens); computed += chunk) {
      input.scheduled = {{"c", computed, std::min(chunk, length(tokens) - computed)}};
      output = step(input);
      input = {};
    }
    expect_logits_of({tokens});
    expect_answer("c", tokens, output.token_ids.at(0));
    step({.finished = {"c"}});
  }
}

TEST_P(PagedRunnerTest, APrefixOfALiveRequestIsNotComputedAgain) {
  const Tokens prefix = prompt(2, 3 * GetParam());
  const Tokens first = prefix + prompt(3, 5);
  step({.new_requests = {{"a", first, kGreedy}}, .scheduled = {{"a", 0, length(first)}}});
  for (const size_t num_blocks : {1, 2, 3}) {
    const Tokens tokens = prefix + prompt(4, 3);
    const int32_t computed = blocks_.share("b", "a", num_blocks);
    const StepOutput output = step({.new_requests = {{"b", tokens, kGreedy}},
                                    .scheduled = {{"b", computed, length(tokens) - computed}}});
    expect_logits_of({tokens});
    expect_answer("b", tokens, output.token_ids.at(0));
  }
  // The request whose blocks they were goes on, and is there after those with its blocks ended.
  step({.finished = {"b"}});
  expect_answer("a", first, alone(first, 1).at(0));
}

TEST_P(PagedRunnerTest, APrefixOfARequestThatEndsIsNotComputedAgain) {
  const Tokens prefix = prompt(5, 2 * GetParam());
  const Tokens first = prefix + prompt(6, 9), second = prefix + prompt(7, 1);
  step({.new_requests = {{"a", first, kGreedy}}, .scheduled = {{"a", 0, length(first)}}});
  const int32_t computed = blocks_.share("b", "a", 2);
  const StepOutput output = step({.finished = {"a"},
                                  .new_requests = {{"b", second, kGreedy}},
                                  .scheduled = {{"b", computed, 1}}});
  expect_logits_of({second});
  expect_answer("b", second, output.token_ids.at(0));
}

TEST_P(PagedRunnerTest, APrefixIsSharedInTheStepThatComputesIt) {
  const Tokens prefix = prompt(8, 2 * GetParam());
  const Tokens first = prefix + prompt(9, 4), second = prefix + prompt(10, 6);
  // A whole prompt, then one of which this step computes the prefix and a bit.
  for (const int32_t count : {length(first), 2 * GetParam() + 1}) {
    auto input = blocks_.with_blocks(
        {.new_requests = {{"a", first, kGreedy}}, .scheduled = {{"a", 0, count}}});
    const int32_t computed = blocks_.share("b", "a", 2);
    const auto hit = blocks_.with_blocks(
        {.new_requests = {{"b", second, kGreedy}}, .scheduled = {{"b", computed, 6}}});
    input.new_requests.push_back(hit.new_requests[0]);
    input.scheduled.push_back(hit.scheduled[0]);
    input.blocks.push_back(hit.blocks[0]);
    const StepOutput output = runner_->step(input);
    if (count == length(first)) {
      expect_logits_of({first, second});
      EXPECT_EQ(output.token_ids[0], alone(first, 1)[0]);
    } else {
      expect_logits_of({second});
    }
    expect_answer("b", second, output.token_ids[1]);
    step({.finished = {"a", "b"}});
  }
}

TEST_P(PagedRunnerTest, APreemptedRequestResumesAfterWhatIsStillCached) {
  const Tokens tokens = prompt(11, 2 * GetParam() + 3);
  const Tokens answer = alone(tokens, 5);
  for (const bool as_new : {false, true}) {
    step({.new_requests = {{"keeper", tokens, kGreedy}, {"p", tokens, kGreedy}},
          .scheduled = {{"keeper", 0, length(tokens)}, {"p", 0, length(tokens)}}});
    EXPECT_EQ(step({.scheduled = {{"p", length(tokens), 1}}}).token_ids[0], answer[1]);
    step({.preempted = {"p"}, .scheduled = {{"keeper", length(tokens), 1}}});
    const int32_t computed = blocks_.share("p", "keeper", 2);
    const Tokens known = tokens + Tokens(answer.begin(), answer.begin() + 2);
    StepInput resumed{.scheduled = {{"p", computed, length(known) - computed}}};
    if (as_new) {
      resumed.new_requests = {{"p", known, kGreedy, 2}};
    } else {
      resumed.updates = {{"p", known}};
    }
    const StepOutput output = step(resumed);
    expect_logits_of({known});
    expect_answer("p", known, output.token_ids[0]);
    step({.finished = {"p", "keeper"}});
  }
}

TEST_P(PagedRunnerTest, CopiedBlocksAreThoseOfTheSource) {
  // The last block is not full: who goes on with it differently needs one of its own.
  const Tokens tokens = prompt(12, 2 * GetParam() + 5);
  const Tokens other = tokens + prompt(13, 4);
  const int32_t first_token =
      step({.new_requests = {{"a", tokens, kGreedy}}, .scheduled = {{"a", 0, length(tokens)}}})
          .token_ids[0];
  blocks_.share("b", "a", 2);
  StepInput input = blocks_.with_blocks(
      {.new_requests = {{"b", other, kGreedy}}, .scheduled = {{"b", length(tokens), 4}}});
  input.block_copies = {{blocks_.table("a")[2], blocks_.table("b")[2]}};
  const StepOutput output = runner_->step(input);
  expect_logits_of({other});
  expect_answer("b", other, output.token_ids[0]);
  expect_answer("a", tokens, first_token);
}

TEST_P(PagedRunnerTest, SharingNeedsNoWaiting) {
  const Tokens prefix = prompt(14, 2 * GetParam());
  const Tokens first = prefix + prompt(15, 30), second = prefix + prompt(16, 2);
  start({.new_requests = {{"a", first, kGreedy}}, .scheduled = {{"a", 0, length(first)}}});
  const int32_t computed = blocks_.share("b", "a", 2);
  const PendingOutput hit = start({.new_requests = {{"b", second, kGreedy}},
                                   .scheduled = {{"a", length(first), 1}, {"b", computed, 2}}});
  const PendingOutput next = start({.finished = {"a"}, .scheduled = {{"b", length(second), 1}}});
  // The blocks of "a" alone are written by another at once.
  start({.new_requests = {{"c", prompt(17, 50), kGreedy}}, .scheduled = {{"c", 0, 50}}});
  const Tokens expected = alone(second, 2);
  EXPECT_EQ(hit.get()->token_ids, (Tokens{alone(first, 2)[1], expected[0]}));
  EXPECT_EQ(next.get()->token_ids[0], expected[1]);
  runner_->synchronize();
}

TEST_P(PagedRunnerTest, BadBlocksFailTheirStepAndNoOther) {
  const Tokens tokens = prompt(18, GetParam() + 3);
  const auto first = step({.new_requests = {{"good", tokens, kGreedy}},
                           .scheduled = {{"good", 0, length(tokens)}}})
                         .token_ids[0];
  const auto failure = [&](const std::vector<int32_t>& table, std::vector<BlockCopy> copies = {}) {
    return error_of([&] {
      runner_->launch({.new_requests = {{"bad", tokens, kGreedy}},
                       .scheduled = {{"bad", 0, length(tokens)}},
                       .blocks = {{"bad", table, true}},
                       .block_copies = std::move(copies)});
      const PendingOutput output = runner_->draw();
      EXPECT_THROW(output.get(), std::invalid_argument);
      EXPECT_THROW(runner_->launch({}), std::invalid_argument);  // as the step before failed
      output.get();
    });
  };
  const int32_t free =
      blocks_.with_blocks({.new_requests = {{"x", tokens, kGreedy}}, .scheduled = {{"x", 0, 1}}})
          .blocks[0]
          .block_ids[0];
  EXPECT_THAT(failure({free}), HasSubstr("2 blocks, but a table of 1"));
  EXPECT_THAT(failure({}), HasSubstr("2 blocks, but a table of 0"));
  EXPECT_THAT(failure({free, 60}), HasSubstr("blocks from 1 to 59 but has 60"));
  EXPECT_THAT(failure({free, 0}), HasSubstr("blocks from 1 to 59 but has 0"));
  EXPECT_THAT(failure({free, -7}), HasSubstr("blocks from 1 to 59 but has -7"));
  EXPECT_THAT(failure({free, free == 59 ? 58 : 59}, {{60, free}}), HasSubstr("60"));
  expect_answer("good", tokens, first);
}

TEST_P(PagedRunnerTest, WhatBreaksAnInvariantIsThrown) {
  const Tokens tokens = prompt(19, GetParam());
  step({.new_requests = {{"a", tokens, kGreedy}}, .scheduled = {{"a", 0, length(tokens)}}});
  const StepInput thief{.new_requests = {{"b", tokens, kGreedy}},
                        .scheduled = {{"b", 0, length(tokens)}},
                        .blocks = {{"b", blocks_.table("a"), true}}};
  EXPECT_THAT(error_of([&] { runner_->step(thief); }),
              HasSubstr("where another request's token lies"));
  runner_->check_invariants(false);
  EXPECT_EQ(runner_->step(thief).token_ids, alone(tokens, 1));
}

TEST_P(PagedRunnerTest, TheCacheIsThereAgainAfterItWasDiscarded) {
  const Tokens tokens = prompt(20, GetParam() + 9);
  step({.new_requests = {{"a", tokens, kGreedy}}, .scheduled = {{"a", 0, length(tokens)}}});
  const size_t pool = runner_->kv_cache_bytes();
  EXPECT_GT(pool, 0u);
  runner_->discard_kv_cache();
  EXPECT_EQ(runner_->kv_cache_bytes(), 0u);
  const Tokens known = tokens + alone(tokens, 1);
  const StepOutput output =
      step({.updates = {{"a", known}}, .preempted = {"a"}, .scheduled = {{"a", 0, length(known)}}});
  EXPECT_EQ(runner_->kv_cache_bytes(), pool);
  expect_answer("a", known, output.token_ids[0]);
}

TEST_P(PagedRunnerTest, MemoryStaysWhateverComesAndGoes) {
  runner_->check_invariants(false);
  runner_->keep_logits(false);
  const auto serve = [&](int seed) {
    const Tokens tokens = prompt(seed, 100 + seed % 7);
    start({.new_requests = {{"r", tokens, kGreedy}}, .scheduled = {{"r", 0, length(tokens)}}});
    for (int i = 0; i < 9; ++i) start({.scheduled = {{"r", length(tokens) + i, 1}}});
    start({.finished = {"r"}}).wait();
    runner_->synchronize();
  };
  for (int seed = 0; seed < 7; ++seed) serve(seed);
  const size_t before = memory_use().active;
  for (int seed = 7; seed < 21; ++seed) serve(seed);
  EXPECT_LE(memory_use().active, before + 4096);
}

}  // namespace
}  // namespace vllm_metal
