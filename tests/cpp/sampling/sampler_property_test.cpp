// SPDX-License-Identifier: Apache-2.0
// Random parameters on random and odd logits: what must hold for every row.
#include <gtest/gtest.h>

#include <random>

#include "reference.h"
#include "sample_one.h"
#include "sampling/sampler.h"

namespace vllm_metal {
namespace {

using reference::kInfinity;

class RandomCases {
 public:
  explicit RandomCases(uint32_t seed) : engine_(seed) {}

  int below(int count) { return static_cast<int>(engine_() % static_cast<uint32_t>(count)); }

  float unit() { return static_cast<float>(engine_() + 1.0) / 4294967296.0f; }  // (0, 1]

  std::vector<float> logits() {
    const float deviation = std::pow(10.0f, 3 * unit() - 2);
    const float step = below(3) == 0 ? 0.25f : 0.0f;
    auto values = reference::random_logits(1 + below(700), deviation, engine_(), step);
    const int kind = below(8);
    const float masked = kind == 1 ? -kInfinity : std::numeric_limits<float>::lowest();
    for (float& value : values) {
      if ((kind == 1 || kind == 2) && below(2) == 0) value = masked;
      if (kind == 3) value *= 1e36f;
      if (kind == 4) value = 7.0f;
    }
    if (kind == 5) values[below(static_cast<int>(values.size()))] = kInfinity;
    return values;
  }

  SamplingParams params(int vocab_size) {
    SamplingParams params;
    params.temperature = below(6) == 0 ? 0.0f : std::pow(10.0f, 5 * unit() - 4);
    if (below(2) == 0) params.top_p = below(4) == 0 ? std::pow(10.0f, -40 * unit()) : unit();
    if (params.top_p == 0) params.top_p = std::numeric_limits<float>::denorm_min();
    if (below(2) == 0) params.top_k = 1 + below(vocab_size + 3);
    if (below(3) == 0) params.min_p = below(4) == 0 ? 1.0f : unit() * unit() * unit();
    if (below(3) == 0) params.num_logprobs = below(vocab_size + 3) - 1;
    return params;
  }

  uint64_t seed() { return uint64_t{engine_()} << 32 | engine_(); }

 private:
  std::mt19937 engine_;
};

// A drawn token is in the set that top-k and top-p leave. The border of top-p is only as sharp as
// float32: a token may be outside by as much as their rounding.
void expect_within_filters(const std::vector<float>& logits, const SamplingParams& params,
                           int32_t token) {
  const int vocab_size = static_cast<int>(logits.size());
  int num_greater = 0;
  for (float logit : logits) num_greater += logit > logits[token];
  EXPECT_GT(logits[token], -kInfinity);
  if (params.is_greedy()) {
    EXPECT_EQ(num_greater, 0);
    return;
  }
  if (params.top_k > 0) {
    EXPECT_LT(num_greater, std::min(params.top_k, vocab_size));
  }
  const auto before_top_p = reference::distribution(logits, params.temperature, params.top_k,
                                                    /*top_p=*/1.0, params.min_p);
  double likelier = 0;
  for (int id = 0; id < vocab_size; ++id) {
    const bool precedes = logits[id] > logits[token] || (logits[id] == logits[token] && id < token);
    if (precedes) likelier += before_top_p[id];
  }
  if (params.top_p < 1) {
    EXPECT_LT(likelier, params.top_p + 1e-5);
  }
}

void expect_sound_logprobs(const std::vector<float>& logits, int32_t token, int wanted,
                           const Logprobs& logprobs) {
  const int vocab_size = static_cast<int>(logits.size());
  const int width = 1 + (wanted == -1 ? vocab_size : std::min(wanted, vocab_size));
  ASSERT_EQ(logprobs.width, width);
  EXPECT_EQ(logprobs.token_ids[0], token);
  const auto ids = reference::ranking(logits);
  for (int i = 1; i < width; ++i) EXPECT_EQ(logprobs.token_ids[i], ids[i - 1]);
  for (int i = 2; i < width; ++i) EXPECT_LE(logprobs.values[i], logprobs.values[i - 1]);
  EXPECT_LE(logprobs.values[0], 0.0f + 1e-6f);
  EXPECT_EQ(logits[ids[logprobs.ranks[0] - 1]], logits[token]);
  if (width == 1 + vocab_size) {
    double sum = 0;
    for (int i = 1; i < width; ++i) sum += std::exp(static_cast<double>(logprobs.values[i]));
    EXPECT_NEAR(sum, 1.0, 1e-5);
  }
}

TEST(SamplerProperties, HoldForRandomRequests) {
  RandomCases cases(2024);
  for (int i = 0; i < 20'000 && !testing::Test::HasFailure(); ++i) {
    const auto logits = cases.logits();
    const int vocab_size = static_cast<int>(logits.size());
    const SamplingParams params = cases.params(vocab_size);
    const Request request = at_index(cases.seed(), cases.below(10));
    SCOPED_TRACE(testing::Message()
                 << "case " << i << ": vocabulary " << vocab_size << ", temperature "
                 << params.temperature << ", top_k " << params.top_k << ", top_p " << params.top_p
                 << ", min_p " << params.min_p);
    const SampleOutput output = sample_one(logits, params, request);
    const bool all_masked = *std::max_element(logits.begin(), logits.end()) == -kInfinity;
    const int32_t token = output.token_ids.at(0);
    ASSERT_EQ(token == SampleOutput::kFailed, all_masked);
    if (all_masked) continue;
    ASSERT_LT(token, vocab_size);
    const bool has_infinity = std::count(logits.begin(), logits.end(), kInfinity) > 0;
    if (has_infinity) {
      EXPECT_EQ(logits[token], kInfinity);
      continue;
    }
    expect_within_filters(logits, params, token);
    if (params.num_logprobs) {
      expect_sound_logprobs(logits, token, *params.num_logprobs, output.logprobs);
    }
  }
}

}  // namespace
}  // namespace vllm_metal
