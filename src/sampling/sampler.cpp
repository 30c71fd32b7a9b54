// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "common/text.h"
#include "sampling/philox.h"
#include "sampling/softmax.h"
#include "sampling/top_k_top_p.h"

namespace vllm_metal {
namespace {

// Memory that rows and steps reuse.
struct Scratch {
  RowSoftmax softmax;
  TopKTopPFilter filter;
};

void check_arguments(std::span<const float> logits, int vocab_size,
                     std::span<const SampleRequest> requests) {
  if (vocab_size < 1) {
    throw std::invalid_argument(
        text("[sample] vocab_size must be at least 1 but got ", vocab_size, "."));
  }
  if (logits.size() != requests.size() * static_cast<size_t>(vocab_size)) {
    throw std::invalid_argument(text(
        "[sample] ", requests.size(), " requests with a vocabulary of ", vocab_size, " need ",
        requests.size() * static_cast<size_t>(vocab_size), " logits but got ", logits.size(), "."));
  }
  for (size_t row = 0; row < requests.size(); ++row) {
    if (requests[row].params == nullptr) {
      throw std::invalid_argument(text("[sample] request ", row, " has no sampling parameters."));
    }
    requests[row].params->validate();
  }
}

int num_logprobs_of(const SamplingParams& params, int vocab_size) {
  const int wanted = *params.num_logprobs;
  return wanted == -1 ? vocab_size : std::min(wanted, vocab_size);
}

int logprobs_width(std::span<const SampleRequest> requests, int vocab_size) {
  int width = 0;
  for (const SampleRequest& request : requests) {
    if (!request.params->num_logprobs) continue;
    width = std::max(width, 1 + num_logprobs_of(*request.params, vocab_size));
  }
  return width;
}

int32_t draw(const SampleRequest& request, Scratch& scratch) {
  RowSoftmax& softmax = scratch.softmax;
  const std::span<const float> logits = softmax.logits();
  const SamplingParams& params = *request.params;
  if (params.is_greedy()) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), softmax.max()) -
                                logits.begin());
  }
  const int vocab_size = static_cast<int>(logits.size());
  const int top_k = params.top_k > 0 ? std::min(params.top_k, vocab_size) : vocab_size;
  const double uniform = uniform_draw(request.seed, static_cast<uint64_t>(request.output_index));
  if (top_k == vocab_size && params.top_p == 1) return softmax.draw(params.temperature, uniform);

  const auto kept = scratch.filter.keep(softmax, params.temperature, top_k, params.top_p);
  double sum = 0;
  for (const Candidate& candidate : kept) sum += candidate.weight;
  const auto position = find_cumulative(
      static_cast<int>(kept.size()), [&](int i) { return kept[i].weight; }, uniform * sum);
  return kept[position.index].token_id;
}

}  // namespace

SampleOutput sample(std::span<const float> logits, int vocab_size,
                    std::span<const SampleRequest> requests) {
  check_arguments(logits, vocab_size, requests);
  thread_local Scratch scratch;
  SampleOutput output;
  output.token_ids.assign(requests.size(), SampleOutput::kFailed);
  output.logprobs = make_logprobs(requests.size(), logprobs_width(requests, vocab_size));
  for (size_t row = 0; row < requests.size(); ++row) {
    const auto row_logits =
        logits.subspan(row * static_cast<size_t>(vocab_size), static_cast<size_t>(vocab_size));
    const float max = max_logit(row_logits);
    if (std::isnan(max) || max == -std::numeric_limits<float>::infinity()) continue;
    scratch.softmax.reset(row_logits, max);
    const int32_t token = draw(requests[row], scratch);
    output.token_ids[row] = token;
    const SamplingParams& params = *requests[row].params;
    if (params.num_logprobs) {
      gather_logprobs(scratch.softmax, token, num_logprobs_of(params, vocab_size), row,
                      output.logprobs);
    }
  }
  return output;
}

}  // namespace vllm_metal
