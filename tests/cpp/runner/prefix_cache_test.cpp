// SPDX-License-Identifier: Apache-2.0
// Steps of the MLX-managed KV cache with a prefix cache: answers are those without.
#include <gmock/gmock.h>

#include <stdexcept>

#include "runner/model_runner.h"
#include "runner/prompt_tokens.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal {
namespace {

using test::kGreedy;
using test::length;
using test::Tokens;
using test::operator+;
using test::prompt;
using testing::HasSubstr;

constexpr int kBlock = 16;

class PrefixCacheRunner : public testing::Test {
 protected:
  PrefixCacheRunner() {
    test::TinyLlama{.num_layers = 3}.write(dir_);
    with_cache_ = make(20);
    without_ = make(0);
  }

  std::unique_ptr<ModelRunner> make(int64_t num_prefix_cache_blocks) const {
    auto runner = std::make_unique<ModelRunner>(
        ModelRunnerOptions{dir_.path(), read_model_config(dir_.path()), mx::float32, {}, {}});
    runner->initialize_kv_cache(4000, kBlock, num_prefix_cache_blocks);
    runner->keep_logits(true);
    return runner;
  }

  // Each step waits for its output, and nothing is cached.
  Tokens alone(const Tokens& tokens, int count) {
    Tokens generated;
    StepInput input{.new_requests = {{"alone", tokens, kGreedy}},
                    .scheduled = {{"alone", 0, length(tokens)}}};
    for (int i = 0; i < count; ++i) {
      generated.push_back(without_->step(input).token_ids.at(0));
      if (i == 0) logits_ = without_->last_logits();
      input = {.scheduled = {{"alone", length(tokens) + i, 1}}};
    }
    without_->step({.finished = {"alone"}});
    return generated;
  }

  PendingOutput start(const StepInput& input) {
    with_cache_->launch(input);
    return with_cache_->draw();
  }

  // The rest of an answer to `tokens` whose first token was drawn.
  Tokens rest(const std::string& id, const Tokens& tokens, int count) {
    std::vector<PendingOutput> outputs;
    for (int i = 0; i < count; ++i)
      outputs.push_back(start({.scheduled = {{id, length(tokens) + i, 1}}}));
    Tokens answer;
    for (const auto& output : outputs) answer.push_back(output.get()->token_ids.at(0));
    return answer;
  }

  test::TempDir dir_;
  std::unique_ptr<ModelRunner> with_cache_, without_;
  std::optional<mx::array> logits_;  // of the last prompt alone
};

TEST_F(PrefixCacheRunner, LogitsAndTokensAreThoseWithout) {
  const Tokens prefix = prompt(1, 3 * kBlock);
  with_cache_->step({.new_requests = {{"a", prefix, kGreedy}},
                     .scheduled = {{"a", 0, length(prefix)}},
                     .prefix_cache = {.saves_of_scheduled = {{"a", 0, {11, 4, 5}}}}});
  for (const int num_blocks : {1, 2, 3}) {
    const Tokens tokens = prefix + prompt(2, 5);
    const Tokens expected = alone(tokens, 6);
    Tokens blocks{11, 4, 5};
    blocks.resize(static_cast<size_t>(num_blocks));
    const int32_t computed = num_blocks * kBlock;
    const PendingOutput first = start({.new_requests = {{"b", tokens, kGreedy}},
                                       .scheduled = {{"b", computed, length(tokens) - computed}},
                                       .prefix_cache = {.loads = {{"b", 0, blocks}}}});
    EXPECT_TRUE(mx::allclose(*with_cache_->last_logits(), *logits_, 1e-5, 1e-5).item<bool>());
    EXPECT_EQ(Tokens{first.get()->token_ids.at(0)} + rest("b", tokens, 5), expected);
    with_cache_->step({.finished = {"b"}});
  }
}

TEST_F(PrefixCacheRunner, AChunkIsLoadedWhileTheNextIsComputed) {
  const Tokens tokens = prompt(3, 4 * kBlock + 7);
  const Tokens expected = alone(tokens, 4);
  start({.new_requests = {{"a", tokens, kGreedy}},
         .scheduled = {{"a", 0, 2 * kBlock + 5}},
         .prefix_cache = {.saves_of_scheduled = {{"a", 0, {0, 1}}}}});
  const PendingOutput second = start(
      {.new_requests = {{"b", tokens, kGreedy}},
       .scheduled = {{"a", 2 * kBlock + 5, length(tokens) - 37},
                     {"b", 2 * kBlock, length(tokens) - 32}},
       .prefix_cache = {.loads = {{"b", 0, {0, 1}}}, .saves_of_scheduled = {{"a", 2, {2, 3}}}}});
  const PendingOutput third = start({.new_requests = {{"c", tokens, kGreedy}},
                                     .scheduled = {{"c", 4 * kBlock, 7}},
                                     .prefix_cache = {.loads = {{"c", 0, {0, 1, 2, 3}}}}});
  EXPECT_EQ(second.get()->token_ids, (Tokens{expected[0], expected[0]}));
  EXPECT_EQ(third.get()->token_ids[0], expected[0]);
  EXPECT_EQ(rest("c", tokens, 3), Tokens(expected.begin() + 1, expected.end()));
}

TEST_F(PrefixCacheRunner, TokensOfARequestThatEndsAreThereForTheNext) {
  const Tokens tokens = prompt(4, 20);
  const Tokens answer = alone(tokens, 2 * kBlock);
  start({.new_requests = {{"a", tokens, kGreedy}}, .scheduled = {{"a", 0, 20}}});
  for (int i = 0; i < 29; ++i) start({.scheduled = {{"a", 20 + i, 1}}});
  const Tokens longer = tokens + Tokens(answer.begin(), answer.begin() + 30);
  const Tokens expected = alone(longer, 3);
  // Its rows go to others in the step that saves them; the id is used again.
  const Tokens other = prompt(5, 60);
  const PendingOutput output = start(
      {.finished = {"a"},
       .new_requests = {{"other", other, kGreedy}, {"a", longer, kGreedy}},
       .scheduled = {{"other", 0, 60}, {"a", 48, 2}},
       .prefix_cache = {.saves_of_ended = {{"a", 0, {0, 1, 2}}}, .loads = {{"a", 0, {0, 1, 2}}}}});
  EXPECT_EQ(output.get()->token_ids, (Tokens{alone(other, 1)[0], expected[0]}));
  EXPECT_EQ(rest("a", longer, 2), Tokens(expected.begin() + 1, expected.end()));
}

TEST_F(PrefixCacheRunner, APreemptedRequestResumesAfterWhatItSaved) {
  const Tokens tokens = prompt(6, 2 * kBlock - 2);
  const Tokens answer = alone(tokens, 10);
  for (const bool as_new : {false, true}) {
    start({.new_requests = {{"p", tokens, kGreedy}}, .scheduled = {{"p", 0, length(tokens)}}});
    rest("p", tokens, 3);
    start({.preempted = {"p"}, .prefix_cache = {.saves_of_ended = {{"p", 0, {6, 7}}}}});
    const Tokens known = tokens + Tokens(answer.begin(), answer.begin() + 4);
    StepInput resumed{.scheduled = {{"p", 2 * kBlock, length(known) - 2 * kBlock}},
                      .prefix_cache = {.loads = {{"p", 0, {6, 7}}}}};
    if (as_new) {
      resumed.new_requests = {{"p", known, kGreedy, 4}};
    } else {
      resumed.updates = {{"p", known}};
    }
    EXPECT_EQ(start(resumed).get()->token_ids[0], answer[4]);
    EXPECT_EQ(rest("p", known, 5), Tokens(answer.begin() + 5, answer.end()));
    start({.finished = {"p"}});
  }
}

TEST_F(PrefixCacheRunner, OnlyCopiesCostNodes) {
  const Tokens tokens = prompt(7, 2 * kBlock + 1);
  const auto nodes_of = [&](ModelRunner& runner, const StepInput& input) {
    runner.count_nodes(true);
    runner.step(input);
    return runner.last_step_nodes();
  };
  const StepInput whole{.new_requests = {{"r", tokens, kGreedy}}, .scheduled = {{"r", 0, 33}}};
  StepInput saving = whole;
  saving.prefix_cache.saves_of_scheduled = {{"r", 0, {2, 3}}};
  const size_t nodes = nodes_of(*without_, whole);
  // A layer: its rows of keys, of values, and the copy of both.
  EXPECT_EQ(nodes_of(*with_cache_, saving), nodes + 3 * size_t{3});
  const StepInput decode{.scheduled = {{"r", 33, 1}}};
  EXPECT_EQ(nodes_of(*with_cache_, decode), nodes_of(*without_, decode));
}

TEST_F(PrefixCacheRunner, GivesItsMemoryBack) {
  const Tokens tokens = prompt(8, kBlock + 1);
  const auto save = [&] {
    with_cache_->step({.finished = {"r"},
                       .new_requests = {{"r", tokens, kGreedy}},
                       .scheduled = {{"r", 0, kBlock + 1}},
                       .prefix_cache = {.saves_of_scheduled = {{"r", 0, {19}}}}});
    return with_cache_->prefix_cache_bytes();
  };
  const size_t bytes = 20 * kBlock * with_cache_->kv_cache_spec().bytes_per_token();
  EXPECT_EQ(with_cache_->prefix_cache_bytes(), 0u);
  EXPECT_EQ(save(), bytes);
  with_cache_->step({.prefix_cache = {.clear = true}});
  EXPECT_EQ(with_cache_->prefix_cache_bytes(), 0u);
  EXPECT_EQ(save(), bytes);
  with_cache_->discard_kv_cache();
  EXPECT_EQ(with_cache_->prefix_cache_bytes(), 0u);
  const PendingOutput output = start({.finished = {"r"},
                                      .new_requests = {{"s", tokens, kGreedy}},
                                      .scheduled = {{"s", kBlock, 1}},
                                      .prefix_cache = {.loads = {{"s", 0, {19}}}}});
  EXPECT_THAT(test::error_of([&] { output.get(); }), HasSubstr("nothing is cached"));
}

// The scheduler believes that the blocks are saved: the engine must not go on.
TEST_F(PrefixCacheRunner, AFailedSaveWithoutAStepFailsTheNextOne) {
  const Tokens tokens = prompt(10, 2 * kBlock + 1);
  with_cache_->step({.new_requests = {{"r", tokens, kGreedy}}, .scheduled = {{"r", 0, 33}}});
  with_cache_->launch({.finished = {"r"}, .prefix_cache = {.saves_of_ended = {{"r", 0, {0, 20}}}}});
  EXPECT_EQ(with_cache_->draw().get()->token_ids, Tokens{});
  EXPECT_EQ(with_cache_->kv_cache_bytes(), 0u);  // its rows are released all the same
  const PendingOutput output =
      start({.new_requests = {{"s", tokens, kGreedy}}, .scheduled = {{"s", 0, 33}}});
  EXPECT_THAT(test::error_of([&] { output.get(); }), HasSubstr("from 0 to 19 but is 20"));
}

TEST_F(PrefixCacheRunner, RefusesBlocksThatDoNotFitTheStep) {
  const Tokens tokens = prompt(9, 40);
  const auto error_of = [&](int32_t computed, const PrefixCacheInput& prefix_cache) {
    return test::error_of([&] {
      with_cache_->launch({.new_requests = {{"r", tokens, kGreedy}},
                           .scheduled = {{"r", computed, 20}},
                           .prefix_cache = prefix_cache});
    });
  };
  EXPECT_THAT(error_of(0, {.loads = {{"r", 0, {1}}}}),
              HasSubstr("'r' has 0 computed tokens but cached blocks up to 16"));
  EXPECT_THAT(error_of(32, {.loads = {{"r", 1, {1}}}}), HasSubstr("up to 32"));
  EXPECT_THAT(error_of(0, {.saves_of_scheduled = {{"r", 0, {1, 2}}}}), HasSubstr("up to 32"));
  EXPECT_THAT(error_of(0, {.loads = {{"s", 0, {1}}}}), HasSubstr("'s' has cached blocks but is"));
  EXPECT_THAT(error_of(0, {.saves_of_ended = {{"s", 0, {1}}}}), HasSubstr("'s' is unknown"));
  EXPECT_THAT(test::error_of([&] { without_->launch({.prefix_cache = {.clear = true}}); }),
              HasSubstr("there is no prefix cache"));
}

}  // namespace
}  // namespace vllm_metal
