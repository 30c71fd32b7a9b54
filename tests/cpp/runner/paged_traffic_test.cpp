// SPDX-License-Identifier: Apache-2.0
// Random steps on the paged KV cache: tokens are those that a request gets alone on the MLX-managed
// one.
#include <gmock/gmock.h>

#include <deque>
#include <memory>
#include <tuple>
#include <utility>

#include "common/text.h"
#include "runner/model_runner.h"
#include "support/block_scheduler.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"
#include "support/traffic.h"

namespace vllm_metal {
namespace {

using test::BlockScheduler;
using test::Traffic;
using Tokens = std::vector<int32_t>;

constexpr size_t kTokens = 10;  // of each answer

std::vector<Traffic::Request> requests() {
  std::vector<Traffic::Request> made;
  std::mt19937 random(1);
  for (int r = 0; r < 16; ++r) {
    Tokens prompt(1 + 9 * static_cast<size_t>(r));
    for (int32_t& token : prompt) token = static_cast<int32_t>(random() % 128);
    SamplingParams sampling{.temperature = 0.0f};
    if (r % 3 == 1) sampling = {.temperature = 0.8f, .top_p = 0.9f, .seed = r};
    if (r % 3 == 2) sampling = {.temperature = 0.0f, .presence_penalty = 1.0f};
    made.push_back({prompt, sampling});
  }
  return made;
}

// Block size, chunk, whether preempted requests come back as new ones.
using Case = std::tuple<int, int, bool>;

std::string name_of(const testing::TestParamInfo<Case>& info) {
  const auto [block_size, chunk, as_new] = info.param;
  return text("blocks_of_", block_size, "_chunks_of_", chunk, as_new ? "_second" : "_first",
              "_dialect");
}

class PagedTrafficTest : public testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() {
    dir_ = std::make_unique<test::TempDir>();
    test::TinyLlama{.num_layers = 3}.write(*dir_);
    const auto managed = make_runner();
    managed->initialize_kv_cache(100000, 16);
    for (const auto& [prompt, sampling] : requests()) {
      Tokens answer;
      auto known = static_cast<int32_t>(prompt.size());
      StepInput input{.new_requests = {{"alone", prompt, sampling}},
                      .scheduled = {{"alone", 0, known}}};
      for (; answer.size() < kTokens; input = {.scheduled = {{"alone", known++, 1}}})
        answer.push_back(managed->step(input).token_ids.at(0));
      alone_.push_back(answer);
    }
  }
  static void TearDownTestSuite() {
    alone_.clear();
    dir_.reset();
  }

  static std::unique_ptr<ModelRunner> make_runner() {
    return std::make_unique<ModelRunner>(
        ModelRunnerOptions{dir_->path(), read_model_config(dir_->path()), mx::float32, {}, {}});
  }

  void SetUp() override {
    const auto [block_size, chunk, as_new] = GetParam();
    const int num_blocks = 6 * (160 / block_size + 1) + 1;
    runner_ = make_runner();
    runner_->initialize_paged_kv_cache(num_blocks, block_size);
    runner_->check_invariants(true);
    blocks_ = std::make_unique<BlockScheduler>(num_blocks, block_size);
    traffic_ = std::make_unique<Traffic>(
        requests(), Traffic::Options{.chunk = chunk, .num_tokens = kTokens, .as_new = as_new});
  }

  void check() {
    for (size_t r = 0; r < alone_.size(); ++r)
      EXPECT_EQ(traffic_->answers()[r], alone_[r]) << "request " << r;
    EXPECT_GT(traffic_->num_preempted(), 5u);
  }

  inline static std::unique_ptr<test::TempDir> dir_;
  inline static std::vector<Tokens> alone_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<BlockScheduler> blocks_;
  std::unique_ptr<Traffic> traffic_;
};

INSTANTIATE_TEST_SUITE_P(Traffic, PagedTrafficTest,
                         testing::Values(Case{8, 1, false}, Case{8, 16, true}, Case{16, 5, true},
                                         Case{16, 16, false}, Case{32, 37, false},
                                         Case{64, 1000, true}, Case{128, 64, false}),
                         name_of);

TEST_P(PagedTrafficTest, StepsThatWait) {
  while (!traffic_->done()) {
    const StepOutput output = runner_->step(blocks_->with_blocks(traffic_->next()));
    traffic_->take(traffic_->rows(), output);
  }
  check();
}

TEST_P(PagedTrafficTest, StepsThatAreLaunchedBeforeTheLastOnesTokensAreKnown) {
  std::deque<std::pair<PendingOutput, std::vector<size_t>>> pending;
  const auto take_all_but = [&](size_t keep) {
    for (; pending.size() > keep; pending.pop_front())
      traffic_->take(pending.front().second, *pending.front().first.get());
  };
  while (!traffic_->done()) {
    if (traffic_->may_preempt()) take_all_but(0);
    runner_->launch(blocks_->with_blocks(traffic_->next()));
    pending.emplace_back(runner_->draw(), traffic_->rows());
    take_all_but(2);
  }
  take_all_but(0);
  check();
}

}  // namespace
}  // namespace vllm_metal
