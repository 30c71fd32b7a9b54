// SPDX-License-Identifier: Apache-2.0
// Steps that fail where MLX computes them, on threads that are not the caller's.
#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "runner/model_runner.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace {

// While set, kernels get no working memory: it is what this program allocates with an alignment.
std::atomic<bool> no_working_memory{false};

}  // namespace

void* operator new(std::size_t size, std::align_val_t alignment) {
  const auto align = static_cast<std::size_t>(alignment);
  void* memory =
      no_working_memory ? nullptr : std::aligned_alloc(align, (size / align + 1) * align);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace vllm_metal {
namespace {

using testing::HasSubstr;
using Tokens = std::vector<int32_t>;

const SamplingParams kGreedy{.temperature = 0.0f};

class FailingStepTest : public testing::TestWithParam<bool> {
 protected:
  FailingStepTest() {
    test::TinyLlama{.num_layers = 3}.write(dir_);
    runner_ = std::make_unique<ModelRunner>(
        ModelRunnerOptions{dir_.path(), read_model_config(dir_.path()), mx::float32, {}, {}});
    if (GetParam()) {
      runner_->initialize_paged_kv_cache(64, 16);
    } else {
      runner_->initialize_kv_cache(1024, 16);
    }
  }
  ~FailingStepTest() override { no_working_memory = false; }

  // A prompt of `length` tokens, all of it or its first `count`.
  static StepInput prompt(const std::string& id, int32_t length, int32_t count) {
    std::vector<int32_t> blocks;
    for (int32_t block = 1; block <= length / 16 + 1; ++block) blocks.push_back(block);
    StepInput input{.new_requests = {{id, Tokens(static_cast<size_t>(length), 7), kGreedy}},
                    .scheduled = {{id, 0, count}}};
    if (GetParam()) input.blocks = {{id, blocks, true}};
    return input;
  }

  test::TempDir dir_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_P(FailingStepTest, AKernelThatThrowsFailsItsStep) {
  constexpr int32_t kLength = 100;
  // With the memory that is kept for steps of this size: what is missing later is a task's own.
  const int32_t expected = runner_->step(prompt("before", kLength, kLength)).token_ids.at(0);
  runner_->step({.finished = {"before"}});
  for (const int32_t count : {kLength, kLength - 1}) {  // the latter draws nothing
    no_working_memory = true;
    runner_->launch(prompt("failing", kLength, count));
    const PendingOutput output = runner_->draw();
    output.wait();
    no_working_memory = false;
    EXPECT_THAT(test::error_of([&] { output.get(); }),
                HasSubstr("cannot allocate its working memory"));
    EXPECT_THROW(runner_->step({.finished = {"failing"}}), std::runtime_error);  // told once more
    runner_->step({.finished = {"failing"}});
    EXPECT_EQ(runner_->step(prompt("after", kLength, kLength)).token_ids.at(0), expected);
    runner_->step({.finished = {"after"}});
  }
}

// The next step is on its way when the kernel throws: each gets its own.
TEST_P(FailingStepTest, AKernelThatThrowsFailsNoOtherStep) {
  const int32_t expected = runner_->step(prompt("before", 20, 20)).token_ids.at(0);
  runner_->step({.finished = {"before"}});
  for (int turn = 0; turn < 10; ++turn) {
    no_working_memory = true;
    runner_->launch(prompt("failing", 400, 400));
    const PendingOutput failing = runner_->draw();
    std::this_thread::sleep_for(std::chrono::milliseconds(turn));  // for a kernel to throw
    no_working_memory = false;
    const std::string id = "next" + std::to_string(turn);
    StepInput next = prompt(id, 20, 20);
    if (GetParam()) next.blocks = {{id, {60, 61}, true}};
    bool is_told = false;  // which the launch does if the step before is done
    try {
      runner_->launch(next);
    } catch (const std::runtime_error&) {
      is_told = true;
      runner_->launch(next);
    }
    const PendingOutput output = runner_->draw();
    const std::string error = test::error_of([&] { failing.get(); });
    EXPECT_THAT(error, testing::AnyOf("no error", HasSubstr("cannot allocate its working memory")));
    EXPECT_EQ(output.get()->token_ids.at(0), expected) << turn;
    const StepInput ended{.finished = {"failing", id}};
    if (error != "no error" && !is_told) {
      EXPECT_THROW(runner_->step(ended), std::runtime_error);
    }
    runner_->step(ended);
  }
}

INSTANTIATE_TEST_SUITE_P(Caches, FailingStepTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Paged" : "Managed"; });

}  // namespace
}  // namespace vllm_metal
