// SPDX-License-Identifier: Apache-2.0
// Blocks that requests share, and blocks that are copied.
#include "runner/paged_runner.h"

namespace vllm_metal {
namespace {

using namespace test;

class PagedPrefix : public PagedRunnerTest {};
INSTANTIATE_TEST_SUITE_P(BlockSizes, PagedPrefix, testing::Values(8, 16, 64),
                         testing::PrintToStringParamName());

TEST_P(PagedPrefix, APrefixOfALiveRequestIsNotComputedAgain) {
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

TEST_P(PagedPrefix, APrefixOfARequestThatEndsIsNotComputedAgain) {
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

TEST_P(PagedPrefix, APrefixIsSharedInTheStepThatComputesIt) {
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

TEST_P(PagedPrefix, APreemptedRequestResumesAfterWhatIsStillCached) {
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

TEST_P(PagedPrefix, CopiedBlocksAreThoseOfTheSource) {
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

TEST_P(PagedPrefix, SharingNeedsNoWaiting) {
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

// Of the activations' dtypes, whose roundings differ with what is computed together.
class PagedPrefixDtypes : public PagedRunnerBase, public testing::WithParamInterface<const char*> {
 protected:
  PagedPrefixDtypes() : PagedRunnerBase(16, parse_dtype(GetParam())) {}
};
INSTANTIATE_TEST_SUITE_P(Dtypes, PagedPrefixDtypes, testing::Values("float16", "bfloat16"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(PagedPrefixDtypes, LogitsAfterAHitAndInChunksAreThoseOfTheWhole) {
  const Tokens prefix = prompt(2, 3 * 16);
  const Tokens first = prefix + prompt(3, 5), second = prefix + prompt(4, 20);
  step({.new_requests = {{"a", first, kGreedy}}, .scheduled = {{"a", 0, length(first)}}});
  expect_logits_of({first});
  const int32_t computed = blocks_.share("b", "a", 3);
  step({.new_requests = {{"b", second, kGreedy}}, .scheduled = {{"b", computed, 13}}});
  step({.scheduled = {{"b", computed + 13, 7}}});
  expect_logits_of({second});
}

}  // namespace
}  // namespace vllm_metal
