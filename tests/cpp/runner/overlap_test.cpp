// SPDX-License-Identifier: Apache-2.0
// Steps launched before the tokens of the step before are known.
#include <gmock/gmock.h>

#include <cmath>
#include <stdexcept>

#include "common/mlx_buffer.h"
#include "runner/model_runner.h"
#include "runner/prompt_tokens.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal {
namespace {

using test::kGreedy;
using test::length;
using test::prompt;
using test::Tokens;
using testing::HasSubstr;

class OverlapTest : public testing::Test {
 protected:
  OverlapTest() {
    test::TinyLlama{.num_layers = 3}.write(dir_);
    runner_ = std::make_unique<ModelRunner>(
        ModelRunnerOptions{dir_.path(), read_model_config(dir_.path()), mx::float32, {}, {}});
    runner_->initialize_kv_cache(100000, 16);
  }

  // Each step waits for its output.
  Tokens alone(const Tokens& prompt, int count, const SamplingParams& sampling) {
    Tokens generated;
    StepInput input{.new_requests = {{"alone", prompt, sampling}},
                    .scheduled = {{"alone", 0, length(prompt)}}};
    for (int i = 0; i < count; ++i) {
      generated.push_back(runner_->step(input).token_ids.at(0));
      input = {.scheduled = {{"alone", length(prompt) + i, 1}}};
    }
    runner_->step({.finished = {"alone"}});
    return generated;
  }

  PendingOutput start(const StepInput& input, const DrawInput& draw = {}) {
    runner_->launch(input);
    return runner_->draw(draw);
  }

  test::TempDir dir_;
  std::unique_ptr<ModelRunner> runner_;
};

// Who draws: only greedy requests, whose tokens are found on the device, or others too.
enum class Drawing { kCpu, kDevice, kDeviceNowAndThen };

std::string name_of(const testing::TestParamInfo<Drawing>& info) {
  switch (info.param) {
    case Drawing::kCpu:
      return "Cpu";
    case Drawing::kDevice:
      return "Device";
    default:
      return "DeviceNowAndThen";
  }
}

class OverlapDrawing : public OverlapTest, public testing::WithParamInterface<Drawing> {};

TEST_P(OverlapDrawing, TokensAreThoseOfStepsThatWait) {
  constexpr int kRequests = 10, kTokens = 12;
  std::vector<Tokens> prompts, expected, generated(kRequests);
  std::vector<SamplingParams> sampling;
  for (int r = 0; r < kRequests; ++r) {
    // Before the third has come and once it is gone, all are greedy.
    const bool is_greedy = GetParam() == Drawing::kDeviceNowAndThen ? r != 2 : r % 2 == 0;
    sampling.push_back(is_greedy || GetParam() == Drawing::kDevice
                           ? kGreedy
                           : SamplingParams{.temperature = 0.8f, .seed = int64_t{r}});
    prompts.push_back(prompt(r, 1 + 7 * r));
    runner_->find_tokens_on_device(false);
    expected.push_back(alone(prompts.back(), kTokens, sampling.back()));
  }
  runner_->find_tokens_on_device(GetParam() != Drawing::kCpu);
  // Requests join one a step, prompts come in chunks of 16, and now and then a decode is left out:
  // tokens come from the step before, from older ones and from the host. Output is read two steps
  // late.
  struct Started {
    PendingOutput output;
    std::vector<size_t> requests;
  };
  std::vector<Started> started;
  auto read = [&](const Started& step) {
    const auto output = step.output.get();
    for (size_t i = 0; i < step.requests.size(); ++i)
      if (output->token_ids[i] >= 0) generated[step.requests[i]].push_back(output->token_ids[i]);
  };
  std::vector<int32_t> computed(kRequests, 0), num_drawn(kRequests, 0);
  for (int step = 0; step < 200; ++step) {
    StepInput input;
    const auto joined = static_cast<size_t>(std::min(step + 1, kRequests));
    if (step < kRequests)
      input.new_requests.push_back(
          {std::to_string(joined - 1), prompts[joined - 1], sampling[joined - 1]});
    std::vector<size_t> requests;
    for (size_t r = 0; r < joined; ++r) {
      if (num_drawn[r] == kTokens || (step + static_cast<int>(r)) % 5 == 0) continue;
      const int32_t known = length(prompts[r]) + num_drawn[r];
      const int32_t count = std::min<int32_t>(16, known - computed[r]);
      input.scheduled.push_back({std::to_string(r), computed[r], count});
      computed[r] += count;
      if (computed[r] == known) ++num_drawn[r];
      requests.push_back(r);
    }
    started.push_back({start(input), requests});
    if (started.size() > 2) read(started[started.size() - 3]);
  }
  read(started[started.size() - 2]);
  read(started.back());
  for (size_t r = 0; r < kRequests; ++r) EXPECT_EQ(generated[r], expected[r]) << r;
}

INSTANTIATE_TEST_SUITE_P(Drawing, OverlapDrawing,
                         testing::Values(Drawing::kCpu, Drawing::kDevice,
                                         Drawing::kDeviceNowAndThen),
                         name_of);

// Two requests of a model with a row of its head in place of others; the second step of both.
struct Continued {
  std::vector<int32_t> token_ids;
  mx::array logits;
};

Continued continue_on_device(const std::vector<float>& head_row, int32_t first_row,
                             bool on_device) {
  const test::TinyLlama tiny{.tied = false};
  auto tensors = tiny.tensors();
  mx::array& head = tensors.at("lm_head.weight");
  const int count = tiny.vocab_size - first_row;
  const mx::array row(head_row.begin(), {1, tiny.hidden_size}, mx::float32);
  head = mx::slice_update(head, mx::broadcast_to(row, {count, tiny.hidden_size}),
                          mx::Shape{first_row, 0}, mx::Shape{tiny.vocab_size, tiny.hidden_size});
  head.eval();
  test::TempDir dir;
  test::write_safetensors(dir.path() / "model.safetensors", tensors);
  ModelRunner runner({dir.path(), Json::parse(tiny.config_json()), mx::float32, {}, {}});
  runner.initialize_kv_cache(1000, 16);
  runner.find_tokens_on_device(on_device);
  runner.keep_logits(true);
  runner.launch({.new_requests = {{"a", {1, 2, 3}, kGreedy}, {"b", {4, 5}, kGreedy}},
                 .scheduled = {{"a", 0, 3}, {"b", 0, 2}}});
  const PendingOutput first = runner.draw();
  runner.launch({.scheduled = {{"a", 3, 1}, {"b", 2, 1}}});
  const PendingOutput second = runner.draw();
  Continued result{first.get()->token_ids, *runner.last_logits()};
  for (const int32_t token : second.get()->token_ids) result.token_ids.push_back(token);
  return result;
}

TEST(TokensOnDevice, AreTheLowestIdsOfEqualLogits) {
  const std::vector<float> ones(64, 1.0f);
  const Continued on_cpu = continue_on_device(ones, 0, false);
  const Continued on_device = continue_on_device(ones, 0, true);
  EXPECT_EQ(on_cpu.token_ids, (std::vector<int32_t>{0, 0, 0, 0}));
  EXPECT_EQ(on_device.token_ids, on_cpu.token_ids);
  // The device has gone on from the same token: which it was shows in the logits.
  EXPECT_TRUE(mx::array_equal(on_device.logits, on_cpu.logits).item<bool>());
}

TEST(TokensOnDevice, GoIntoTheNextStep) {
  const std::vector<float> zeros(64, 0.0f);
  const Continued on_cpu = continue_on_device(zeros, 120, false);
  const Continued on_device = continue_on_device(zeros, 120, true);
  EXPECT_EQ(on_device.token_ids, on_cpu.token_ids);
  EXPECT_TRUE(mx::array_equal(on_device.logits, on_cpu.logits).item<bool>());
}

TEST(TokensOnDevice, OfNanAreTokensAllTheSame) {
  const std::vector<float> nan(64, NAN);
  for (const int32_t first_row : {0, 64}) {
    const Continued failed = continue_on_device(nan, first_row, true);
    EXPECT_EQ(failed.token_ids, std::vector<int32_t>(4, SampleOutput::kFailed));
  }
}

TEST_F(OverlapTest, AStepUnderWayDoesNotReachARequestThatResumed) {
  const Tokens tokens = prompt(20, 30);
  const Tokens expected = alone(tokens, 4, kGreedy);
  start({.new_requests = {{"r", tokens, kGreedy}}, .scheduled = {{"r", 0, 30}}});
  // Preempted with its token under way, and resumed with other tokens than those.
  const Tokens other = prompt(21, 31);
  Tokens after_other = alone(other, 2, kGreedy);
  const PendingOutput stale = start({.scheduled = {{"r", 30, 1}}});
  const PendingOutput resumed =
      start({.updates = {{"r", other}}, .preempted = {"r"}, .scheduled = {{"r", 0, 31}}});
  const PendingOutput next = start({.scheduled = {{"r", 31, 1}}});
  EXPECT_EQ(stale.get()->token_ids[0], expected[1]);
  EXPECT_EQ(resumed.get()->token_ids[0], after_other[0]);
  EXPECT_EQ(next.get()->token_ids[0], after_other[1]);
}

TEST_F(OverlapTest, RequestsMayEndWithTheirTokensUnderWay) {
  const Tokens tokens = prompt(22, 12);
  const Tokens expected = alone(tokens, 3, kGreedy);
  start({.new_requests = {{"r", prompt(23, 40), kGreedy}}, .scheduled = {{"r", 0, 40}}});
  start({.scheduled = {{"r", 40, 1}}});
  const PendingOutput first = start(
      {.finished = {"r"}, .new_requests = {{"r", tokens, kGreedy}}, .scheduled = {{"r", 0, 12}}});
  const PendingOutput second = start({.scheduled = {{"r", 12, 1}}});
  EXPECT_EQ(first.get()->token_ids[0], expected[0]);
  EXPECT_EQ(second.get()->token_ids[0], expected[1]);
  start({.finished = {"r"}}).wait();
  EXPECT_EQ(runner_->kv_cache_bytes(), 0u);
}

TEST_F(OverlapTest, MoreInputKeepsTheCache) {
  const Tokens whole = prompt(24, 25);
  const Tokens expected = alone(whole, 3, kGreedy);
  const Tokens part(whole.begin(), whole.begin() + 15);
  start({.new_requests = {{"s", part, {.temperature = 1.0f}}}, .scheduled = {{"s", 0, 15}}});
  // The token that was drawn is dropped; tokens 0 to 14 stay computed.
  const PendingOutput output =
      start({.sessions = {{"s", whole, kGreedy}}, .scheduled = {{"s", 15, 10}}});
  EXPECT_EQ(output.get()->token_ids[0], expected[0]);
  EXPECT_EQ(start({.scheduled = {{"s", 25, 1}}}).get()->token_ids[0], expected[1]);
  EXPECT_THROW(start({.sessions = {{"nobody", whole, kGreedy}}}), std::invalid_argument);
}

TEST_F(OverlapTest, TokensDrawnByTheCallerAreContinued) {
  const Tokens tokens = prompt(25, 9);
  Tokens forced = tokens;
  forced.push_back(77);
  const Tokens expected = alone(forced, 2, kGreedy);
  runner_->launch({.new_requests = {{"a", tokens, kGreedy}, {"b", tokens, kGreedy}},
                   .scheduled = {{"a", 0, 9}, {"b", 0, 5}}});
  EXPECT_EQ(runner_->sampled_indices(), std::vector<size_t>{0});
  EXPECT_EQ(runner_->logits().shape(), (mx::Shape{1, 128}));
  EXPECT_THROW(runner_->draw({.given = {{1, 77}}}), std::invalid_argument);
  EXPECT_THROW(runner_->draw({.given = {{0, 128}}}), std::invalid_argument);
  EXPECT_EQ(runner_->draw({.given = {{0, 77}}}).get()->token_ids,
            (Tokens{77, StepOutput::kNoToken}));
  EXPECT_EQ(start({.scheduled = {{"a", 9, 1}}}).get()->token_ids[0], expected[0]);
}

TEST_F(OverlapTest, LogitsThatAreNotThereAreNamed) {
  EXPECT_THROW(runner_->logits(), std::invalid_argument);
  runner_->launch({.new_requests = {{"a", prompt(1, 9), kGreedy}}, .scheduled = {{"a", 0, 4}}});
  EXPECT_THROW(runner_->logits(), std::invalid_argument);
  EXPECT_EQ(runner_->draw().get()->token_ids, Tokens{StepOutput::kNoToken});
}

TEST_F(OverlapTest, ABitmaskThatDoesNotFitIsRefused) {
  runner_->launch({.new_requests = {{"a", prompt(1, 4), kGreedy}}, .scheduled = {{"a", 0, 4}}});
  try {
    runner_->draw({.grammar_ids = {"a"}, .bitmask = {1, 2, 3}});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), HasSubstr("1 grammars need 4 words of bitmask but got 3"));
  }
}

TEST_F(OverlapTest, MemoryIsThatOfOneStepAtATime) {
  const Tokens tokens = prompt(26, 600);
  start({.new_requests = {{"r", tokens, kGreedy}}, .scheduled = {{"r", 0, 600}}}).wait();
  start({.scheduled = {{"r", 600, 1}}}).wait();
  runner_->synchronize();
  const size_t before = memory_use().active;
  std::vector<PendingOutput> outputs;
  for (int i = 1; i < 60; ++i) outputs.push_back(start({.scheduled = {{"r", 600 + i, 1}}}));
  outputs.back().wait();
  runner_->synchronize();
  EXPECT_LE(memory_use().active, before + 4096);
}

}  // namespace
}  // namespace vllm_metal
