// SPDX-License-Identifier: Apache-2.0
// What the scheduler's changes make of the requests, and that those refused change nothing.
#include "runner/input_batch.h"

#include <gmock/gmock.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/text.h"
#include "support/error_of.h"

namespace vllm_metal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Keys = std::vector<RequestKey>;

const SamplingParams kGreedy{.temperature = 0.0f};

class InputBatchTest : public testing::Test {
 protected:
  InputBatchTest() {
    config_.vocab_size = 100;
    batch_.update({.new_requests = {{"a", {1, 2, 3}, kGreedy}, {"b", {4, 5}, kGreedy}},
                   .blocks = {{"a", {7, 8}, true}, {"b", {9}, true}}});
  }

  // All that a step sees of a request, or why it sees nothing.
  std::string seen_of(const std::string& id) const {
    try {
      const int known = batch_.pack({.scheduled = {{id, 0, 1}}}).step->request_lens.at(0);
      const Batch batch = batch_.pack({.scheduled = {{id, 0, known}}});
      return text(batch.step->cache.keys.at(0), ": ", join(batch.step->token_ids, " "), " in ",
                  join(batch_.block_ids(id), " "));
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
  }

  std::vector<std::string> seen() const { return {seen_of("a"), seen_of("b"), seen_of("c")}; }

  SamplerConfig config_;
  InputBatch batch_{config_};
};

// Good changes of every kind.
StepInput good_step() {
  return {.finished = {"b"},
          .new_requests = {{"c", {6}, kGreedy}, {"a", {10, 11}, kGreedy}},
          .updates = {{"c", {6, 12}}},
          .preempted = {"a", "never ran"},
          .blocks = {{"a", {3}, false}, {"c", {4}, true}, {"a", {5}, false}}};
}

TEST_F(InputBatchTest, ChangesAreMadeInTheirOrder) {
  EXPECT_THAT(seen(),
              ElementsAre("0: 1 2 3 in 7 8", "1: 4 5 in 9", "[runner] request 'c' is unknown."));
  EXPECT_EQ(batch_.update(good_step()), (Keys{1, 0, 0}));
  EXPECT_THAT(seen(),
              ElementsAre("3: 10 11 in 3 5", "[runner] request 'b' is unknown.", "2: 6 12 in 4"));
  EXPECT_EQ(batch_.size(), 2u);
}

TEST_F(InputBatchTest, ASessionKeepsItsCache) {
  EXPECT_EQ(batch_.update({.sessions = {{"a", {1, 2, 3, 4}, kGreedy}}}), Keys{});
  EXPECT_EQ(seen_of("a"), "0: 1 2 3 4 in ");
}

TEST_F(InputBatchTest, AnIdMayBeUsedAgainInTheStepThatForgetsIt) {
  EXPECT_EQ(batch_.update({.finished = {"a"}, .new_requests = {{"a", {5}, kGreedy}}}), Keys{0});
  EXPECT_EQ(seen_of("a"), "2: 5 in ");
}

TEST_F(InputBatchTest, WhatIsRefusedChangesNothing) {
  using Spoil = std::pair<void (*)(StepInput&), const char*>;
  const std::vector<Spoil> spoils = {
      {[](StepInput& step) { step.new_requests.push_back({"d", {}, kGreedy}); }, "has no tokens"},
      {[](StepInput& step) { step.new_requests.push_back({"d", {100}, kGreedy}); }, "token_ids"},
      {[](StepInput& step) { step.new_requests.push_back({"d", {1}, {.temperature = -1.0f}}); },
       "temperature"},
      {[](StepInput& step) { step.sessions.push_back({"d", {1}, kGreedy}); }, "'d' is unknown"},
      {[](StepInput& step) { step.sessions.push_back({"b", {1}, kGreedy}); }, "'b' is unknown"},
      {[](StepInput& step) { step.sessions.push_back({"a", {-1}, kGreedy}); }, "token_ids"},
      {[](StepInput& step) { step.updates.push_back({"b", {4, 5, 6}}); }, "'b' is unknown"},
      {[](StepInput& step) { step.updates.push_back({"a", {10}}); }, "num_output_tokens"},
      {[](StepInput& step) { step.updates.push_back({"a", {10, 11, 100}}); }, "token_ids"},
      {[](StepInput& step) { step.blocks.push_back({"b", {1}, true}); }, "'b' is unknown"},
      {[](StepInput& step) { step.blocks.push_back({"d", {1}, true}); }, "'d' is unknown"},
  };
  const std::vector<std::string> before = seen();
  for (const auto& [spoil, message] : spoils) {
    StepInput step = good_step();
    spoil(step);
    EXPECT_THAT(test::error_of([&] { batch_.update(step); }), HasSubstr(message));
    EXPECT_EQ(seen(), before) << message;
    EXPECT_EQ(batch_.size(), 2u) << message;
  }
  // The good part of it has the effect that it would have had at first.
  EXPECT_EQ(batch_.update(good_step()), (Keys{1, 0, 0}));
  EXPECT_EQ(seen_of("a"), "3: 10 11 in 3 5");
}

}  // namespace
}  // namespace vllm_metal
