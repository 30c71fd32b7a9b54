// SPDX-License-Identifier: Apache-2.0
// Steps as the scheduler may ask for them: whatever the order, the batch and the cut of the
// prompt, a request's tokens are the ones it gets alone.
#include "runner/model_runner.h"

#include <gmock/gmock.h>

#include <stdexcept>

#include "common/mlx_buffer.h"
#include "runner/prompt_tokens.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal {
namespace {

using test::kGreedy;
using test::prompt;
using test::TempDir;
using test::TinyLlama;
using test::Tokens;
using testing::HasSubstr;

class ModelRunnerTest : public testing::Test {
 protected:
  void SetUp() override { start(TinyLlama{.num_layers = 3}); }

  void start(const TinyLlama& tiny, mx::Dtype dtype = mx::float32, int64_t cache_tokens = 100000) {
    dir_ = std::make_unique<TempDir>();
    tiny.write(*dir_);
    runner_ = std::make_unique<ModelRunner>(
        ModelRunnerOptions{dir_->path(), read_model_config(dir_->path()), dtype, {}});
    runner_->initialize_kv_cache(cache_tokens, 16);
  }

  // The whole prompt at once, then a token a step.
  Tokens generate(const std::string& id, const Tokens& prompt, int count,
                  const SamplingParams& sampling = kGreedy) {
    Tokens generated;
    auto computed = static_cast<int32_t>(prompt.size());
    StepInput input{.new_requests = {{id, prompt, sampling}}, .scheduled = {{id, 0, computed}}};
    for (int i = 0; i < count; ++i) {
      generated.push_back(runner_->step(input).token_ids.at(0));
      input = {.scheduled = {{id, computed++, 1}}};
    }
    runner_->step({.finished = {id}});
    return generated;
  }

  std::unique_ptr<TempDir> dir_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_F(ModelRunnerTest, ChunkedPromptsGiveTheSameTokens) {
  const Tokens tokens = prompt(1, 37);
  const Tokens expected = generate("whole", tokens, 8);
  for (int chunk : {1, 5, 16, 36}) {
    Tokens generated;
    StepInput input{.new_requests = {{"c", tokens, kGreedy}}};
    int32_t computed = 0;
    while (generated.size() < expected.size()) {
      const int32_t known = 37 + static_cast<int32_t>(generated.size());
      const int32_t count = std::min<int32_t>(chunk, known - computed);
      input.scheduled = {{"c", computed, count}};
      const int32_t token = runner_->step(input).token_ids.at(0);
      computed += count;
      if (computed < known) {
        EXPECT_EQ(token, StepOutput::kNoToken);
      } else {
        generated.push_back(token);
      }
      input = {};
    }
    EXPECT_EQ(generated, expected) << "chunks of " << chunk;
    runner_->step({.finished = {"c"}});
  }
}

TEST_F(ModelRunnerTest, MixedBatchesGiveTheTokensOfRequestsAlone) {
  constexpr int kRequests = 12, kTokens = 10;
  std::vector<Tokens> prompts, expected, generated(kRequests);
  for (int r = 0; r < kRequests; ++r) {
    prompts.push_back(prompt(r, 1 + 9 * r));
    expected.push_back(generate("alone", prompts.back(), kTokens));
  }
  // Requests join one after the other and their prompts come in chunks of 16, so that steps mix
  // chunks and decodes.
  std::vector<int32_t> computed(kRequests, 0);
  int joined = 0;
  for (bool busy = true; busy;) {
    StepInput input;
    if (joined < kRequests) {
      input.new_requests.push_back(
          {std::to_string(joined), prompts[static_cast<size_t>(joined)], kGreedy});
      ++joined;
    }
    std::vector<size_t> rows;
    for (size_t r = 0; r < static_cast<size_t>(joined); ++r) {
      const auto known = static_cast<int32_t>(prompts[r].size() + generated[r].size());
      if (generated[r].size() == kTokens) continue;
      const int32_t count = std::min<int32_t>(16, known - computed[r]);
      input.scheduled.push_back({std::to_string(r), computed[r], count});
      computed[r] += count;
      rows.push_back(r);
    }
    busy = !rows.empty();
    const StepOutput output = runner_->step(input);
    StepInput finished;
    for (size_t i = 0; i < rows.size(); ++i)
      if (output.token_ids[i] >= 0) generated[rows[i]].push_back(output.token_ids[i]);
  }
  for (size_t r = 0; r < kRequests; ++r) EXPECT_EQ(generated[r], expected[r]) << r;
}

TEST_F(ModelRunnerTest, PreemptedRequestsResumeWithTheirTokens) {
  const Tokens tokens = prompt(3, 20);
  const Tokens expected = generate("alone", tokens, 9);
  Tokens generated;
  runner_->step({.new_requests = {{"p", tokens, kGreedy}}});
  StepOutput output = runner_->step({.scheduled = {{"p", 0, 20}}});
  generated.push_back(output.token_ids[0]);
  for (int i = 0; i < 3; ++i)
    generated.push_back(runner_->step({.scheduled = {{"p", 20 + i, 1}}}).token_ids[0]);
  const size_t held = runner_->kv_cache_bytes();
  runner_->step({.preempted = {"p"}});
  EXPECT_GT(held, 0u);
  EXPECT_EQ(runner_->kv_cache_bytes(), 0u);
  Tokens all = tokens;
  all.insert(all.end(), generated.begin(), generated.end());
  generated.push_back(
      runner_->step({.updates = {{"p", all}}, .scheduled = {{"p", 0, 24}}}).token_ids[0]);
  for (int i = 0; i < 4; ++i)
    generated.push_back(runner_->step({.scheduled = {{"p", 24 + i, 1}}}).token_ids[0]);
  EXPECT_EQ(generated, expected);
}

TEST_F(ModelRunnerTest, AResumedRequestMayComeAsANewOne) {
  const Tokens tokens = prompt(4, 11);
  const SamplingParams seeded{.temperature = 1.0f, .seed = 42};
  const Tokens expected = generate("alone", tokens, 6, seeded);
  Tokens all = tokens;
  all.insert(all.end(), expected.begin(), expected.begin() + 3);
  const StepOutput output =
      runner_->step({.new_requests = {{"r", all, seeded, 3}}, .scheduled = {{"r", 0, 14}}});
  EXPECT_EQ(output.token_ids[0], expected[3]);
}

TEST_F(ModelRunnerTest, SeededDrawsDoNotDependOnTheBatch) {
  const SamplingParams seeded{.temperature = 0.9f, .top_p = 0.95f, .top_k = 40, .seed = 7};
  const Tokens tokens = prompt(5, 9);
  const Tokens expected = generate("alone", tokens, 12, seeded);
  Tokens generated;
  StepInput input{
      .new_requests = {{"a", prompt(6, 30), {.temperature = 1.0f}}, {"b", tokens, seeded}},
      .scheduled = {{"a", 0, 30}, {"b", 0, 9}}};
  for (int i = 0; i < 12; ++i) {
    generated.push_back(runner_->step(input).token_ids.at(1));
    input = {.scheduled = {{"a", 30 + i, 1}, {"b", 9 + i, 1}}};
  }
  EXPECT_EQ(generated, expected);
  EXPECT_NE(generate("other", tokens, 12, {.temperature = 0.9f, .seed = 8}), expected);
}

TEST_F(ModelRunnerTest, RequestsWithoutASeedDiffer) {
  const SamplingParams random{.temperature = 1.0f};
  const Tokens tokens = prompt(5, 9);
  EXPECT_NE(generate("first", tokens, 24, random), generate("second", tokens, 24, random));
  Tokens first, second;
  StepInput input{.new_requests = {{"a", tokens, random}, {"b", tokens, random}},
                  .scheduled = {{"a", 0, 9}, {"b", 0, 9}}};
  for (int i = 0; i < 24; ++i) {
    const StepOutput output = runner_->step(input);
    first.push_back(output.token_ids[0]);
    second.push_back(output.token_ids[1]);
    input = {.scheduled = {{"a", 9 + i, 1}, {"b", 9 + i, 1}}};
  }
  EXPECT_NE(first, second);
}

TEST_F(ModelRunnerTest, IdsMayBeUsedAgain) {
  const Tokens first = generate("x", prompt(7, 15), 5);
  generate("x", prompt(8, 33), 5);
  EXPECT_EQ(generate("x", prompt(7, 15), 5), first);
  // Finished and new in the same step.
  runner_->step({.new_requests = {{"x", prompt(8, 3), kGreedy}}, .scheduled = {{"x", 0, 3}}});
  const StepOutput output = runner_->step({.finished = {"x"},
                                           .new_requests = {{"x", prompt(7, 15), kGreedy}},
                                           .scheduled = {{"x", 0, 15}}});
  EXPECT_EQ(output.token_ids[0], first[0]);
}

TEST_F(ModelRunnerTest, MemoryComesBackWhenRequestsEnd) {
  generate("warm", prompt(9, 50), 3);
  runner_->synchronize();
  const size_t before = memory_use().active;
  generate("x", prompt(9, 3000), 3);
  runner_->synchronize();
  EXPECT_EQ(runner_->kv_cache_bytes(), 0u);
  EXPECT_LE(memory_use().active, before + 4096);
}

TEST_F(ModelRunnerTest, NodesDoNotGrowWithTheBatch) {
  runner_->count_nodes(true);
  std::vector<size_t> nodes;
  for (int batch : {1, 32}) {
    StepInput input, decode;
    for (int r = 0; r < batch; ++r) {
      input.new_requests.push_back({std::to_string(r), prompt(r, 5 + r), kGreedy});
      input.scheduled.push_back({std::to_string(r), 0, 5 + r});
      decode.scheduled.push_back({std::to_string(r), 5 + r, 1});
    }
    runner_->step(input);
    runner_->step(decode);
    nodes.push_back(runner_->last_step_nodes());
  }
  EXPECT_EQ(nodes[0], nodes[1]);
}

TEST_F(ModelRunnerTest, ALayerIsTenNodes) {
  auto nodes_of = [&](int layers) {
    start(TinyLlama{.num_layers = layers});
    runner_->count_nodes(true);
    generate("x", prompt(1, 4), 2);
    return runner_->last_step_nodes();
  };
  const size_t four = nodes_of(4), two = nodes_of(2);
  EXPECT_EQ((four - two) / 2, 10u);
}

TEST_F(ModelRunnerTest, WeightsAndCacheGoAndComeBack) {
  runner_.reset();
  const size_t before = memory_use().active;
  start({});
  const Tokens expected = generate("x", prompt(1, 40), 8);
  const size_t weights = runner_->weight_bytes();
  ASSERT_GT(weights, 0u);
  // A request that lives while the cache is discarded is computed anew.
  StepInput first;
  first.new_requests.push_back({"live", prompt(2, 30), kGreedy});
  first.scheduled.push_back({"live", 0, 30});
  runner_->step(first);
  EXPECT_GT(runner_->kv_cache_bytes(), 0u);

  runner_->discard_kv_cache();
  EXPECT_EQ(runner_->kv_cache_bytes(), 0u);
  runner_->unload_weights();
  EXPECT_LE(memory_use().active, before + 4096);
  EXPECT_EQ(memory_use().cache, 0u);
  StepInput again;
  again.preempted = {"live"};
  again.scheduled.push_back({"live", 0, 31});
  EXPECT_THROW(runner_->step(again), std::runtime_error);

  runner_->load_weights();
  EXPECT_EQ(runner_->weight_bytes(), weights);
  EXPECT_EQ(generate("y", prompt(1, 40), 8), expected);
  runner_->load_weights();  // they are there
  EXPECT_EQ(generate("z", prompt(1, 40), 8), expected);
}

TEST_F(ModelRunnerTest, MeasuresWhatAStepNeeds) {
  runner_ = std::make_unique<ModelRunner>(
      ModelRunnerOptions{dir_->path(), read_model_config(dir_->path()), mx::float32, {}});
  const size_t few = runner_->measure_activations(64, 4);
  const size_t many = runner_->measure_activations(1024, 4);
  EXPECT_GT(few, 0u);
  EXPECT_GT(many, few);
  EXPECT_EQ(runner_->kv_cache_bytes(), 0u);
  EXPECT_THROW(runner_->measure_activations(3, 4), std::invalid_argument);
  runner_->initialize_kv_cache(1024, 16);
  EXPECT_THROW(runner_->measure_activations(64, 4), std::invalid_argument);
}

TEST_F(ModelRunnerTest, NanEndsOneRequestOnly) {
  // Token 127 has an embedding of NaN: whoever uses it fails. Untied, so that no other logit is
  // touched.
  const TinyLlama tiny{.tied = false};
  const SamplingParams with_logprobs{.temperature = 0.0f, .num_logprobs = 1};
  dir_ = std::make_unique<TempDir>();
  auto tensors = tiny.tensors();
  mx::array& embedding = tensors.at("model.embed_tokens.weight");
  embedding =
      mx::slice_update(embedding, mx::full({1, 64}, NAN), mx::Shape{127, 0}, mx::Shape{128, 64});
  embedding.eval();
  test::write_safetensors(dir_->path() / "model.safetensors", tensors);
  runner_ = std::make_unique<ModelRunner>(
      ModelRunnerOptions{dir_->path(), Json::parse(tiny.config_json()), mx::float32, {}});
  runner_->initialize_kv_cache(1000, 16);
  const StepOutput alone = runner_->step(
      {.new_requests = {{"good", {1, 2, 3}, with_logprobs}}, .scheduled = {{"good", 0, 3}}});
  const StepOutput output = runner_->step(
      {.finished = {"good"},
       .new_requests = {{"bad", {1, 127, 3}, with_logprobs}, {"good", {1, 2, 3}, with_logprobs}},
       .scheduled = {{"bad", 0, 3}, {"good", 0, 3}}});
  EXPECT_EQ(output.token_ids[0], SampleOutput::kFailed);
  EXPECT_EQ(output.token_ids[1], alone.token_ids[0]);
  // The failed row keeps its place among the log probabilities.
  ASSERT_EQ(output.logprobs.ranks.size(), 2u);
  EXPECT_EQ(output.logprobs.ranks[1], 1);
  EXPECT_FLOAT_EQ(output.logprobs.values[2], alone.logprobs.values[0]);
}

TEST_F(ModelRunnerTest, ContradictionsAreNamed) {
  auto error = [&](const StepInput& input) -> std::string {
    try {
      runner_->step(input);
    } catch (const std::exception& caught) {
      return caught.what();
    }
    return "no error";
  };
  EXPECT_THAT(error({.scheduled = {{"nobody", 0, 1}}}), HasSubstr("'nobody' is unknown"));
  EXPECT_THAT(error({.new_requests = {{"e", {}, kGreedy}}}), HasSubstr("no tokens"));
  EXPECT_THAT(error({.new_requests = {{"t", {1, 2}, {.temperature = -1.0f}}}}),
              HasSubstr("temperature"));
  EXPECT_THAT(error({.new_requests = {{"s", {1, 2}, kGreedy}}, .scheduled = {{"s", 0, 3}}}),
              HasSubstr("2 tokens"));
  EXPECT_EQ(generate("after", prompt(1, 5), 2).size(), 2u);  // and the runner goes on
}

// Of the seed of all come those of requests that have none: two runs are alike.
TEST_F(ModelRunnerTest, SeedsOfRequestsComeFromTheRunners) {
  const auto drawn = [&](std::optional<uint64_t> seed) {
    ModelRunner runner(ModelRunnerOptions{
        dir_->path(), read_model_config(dir_->path()), mx::float32, {}, {.seed = seed}});
    runner.initialize_kv_cache(256, 16);
    StepInput input;
    for (const char* id : {"a", "b", "c", "d"}) {
      input.new_requests.push_back({id, std::vector<int32_t>(5, 7), {.temperature = 1.0f}});
      input.scheduled.push_back({id, 0, 5});
    }
    std::vector<int32_t> tokens = runner.step(input).token_ids;
    for (int i = 0; i < 3; ++i) {
      for (auto& scheduled : input.scheduled) scheduled = {scheduled.id, 5 + i, 1};
      const std::vector<int32_t> more = runner.step({.scheduled = input.scheduled}).token_ids;
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
    return tokens;
  };
  const std::vector<int32_t> first = drawn(7);
  EXPECT_EQ(drawn(7), first);
  EXPECT_NE(drawn(8), first);
  EXPECT_NE(drawn(std::nullopt), drawn(std::nullopt));
}

}  // namespace
}  // namespace vllm_metal
