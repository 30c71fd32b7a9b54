// SPDX-License-Identifier: Apache-2.0
// Steps on blocks: good ones, bad ones, and what is left of them.
#include "runner/paged_runner.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "common/mlx_buffer.h"
#include "support/error_of.h"

namespace vllm_metal {
namespace {

using namespace test;
using testing::HasSubstr;

class PagedRunner : public PagedRunnerTest {};
INSTANTIATE_TEST_SUITE_P(BlockSizes, PagedRunner, testing::Values(8, 16, 64),
                         testing::PrintToStringParamName());

TEST_P(PagedRunner, LogitsOfChunksAreThoseOfTheWhole) {
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

TEST_P(PagedRunner, MoreInputKeepsTheBlocks) {
  const Tokens whole = prompt(21, GetParam() + 20);
  const Tokens part(whole.begin(), whole.begin() + GetParam() + 3);
  start({.new_requests = {{"s", part, {.temperature = 1.0f}}},
         .scheduled = {{"s", 0, length(part)}}});
  // The token that was drawn is dropped; those of the part stay computed.
  blocks_.keep("s");
  const PendingOutput output =
      start({.new_requests = {{"s", whole, kGreedy}}, .scheduled = {{"s", length(part), 17}}});
  const PendingOutput next = start({.scheduled = {{"s", length(whole), 1}}});
  const Tokens expected = alone(whole, 2);
  EXPECT_EQ(output.get()->token_ids[0], expected[0]);
  EXPECT_EQ(next.get()->token_ids[0], expected[1]);
  EXPECT_EQ(runner_->block_ids("s"), blocks_.table("s"));
  EXPECT_THROW(runner_->block_ids("nobody"), std::invalid_argument);
}

TEST_P(PagedRunner, NanInABlockDoesNotReachWhoGetsItNext) {
  // Token 127 has an embedding of NaN. Untied, so that no other logit is touched.
  const TinyLlama tiny{.tied = false};
  auto tensors = tiny.tensors();
  mx::array& embedding = tensors.at("model.embed_tokens.weight");
  embedding =
      mx::slice_update(embedding, mx::full({1, 64}, NAN), mx::Shape{127, 0}, mx::Shape{128, 64});
  embedding.eval();
  const TempDir dir;
  write_safetensors(dir.path() / "model.safetensors", tensors);
  const auto runner = std::make_unique<ModelRunner>(
      ModelRunnerOptions{dir.path(), Json::parse(tiny.config_json()), mx::float32, {}, {}});
  runner->initialize_paged_kv_cache(8, GetParam());
  const std::vector<int32_t> table{5, 2};
  const auto first_token = [&](const std::string& id, const Tokens& tokens) {
    const StepOutput output = runner->step({.new_requests = {{id, tokens, kGreedy}},
                                            .scheduled = {{id, 0, length(tokens)}},
                                            .blocks = {{id, table, true}}});
    runner->step({.finished = {id}});
    return output.token_ids.at(0);
  };
  Tokens good = prompt(22, GetParam() + 2);
  std::replace(good.begin(), good.end(), 127, 126);
  const int32_t expected = first_token("before", good);
  ASSERT_GE(expected, 0);
  EXPECT_EQ(first_token("bad", Tokens(static_cast<size_t>(2 * GetParam()), 127)),
            SampleOutput::kFailed);
  EXPECT_EQ(first_token("after", good), expected);
}

TEST_P(PagedRunner, BadBlocksFailTheirStepAndNoOther) {
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

TEST_P(PagedRunner, WhatBreaksAnInvariantIsThrown) {
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

TEST_P(PagedRunner, TheCacheIsThereAgainAfterItWasDiscarded) {
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

TEST_P(PagedRunner, MemoryStaysWhateverComesAndGoes) {
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
