// SPDX-License-Identifier: Apache-2.0
#include "sampling/token_filter.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <numeric>

#include "sampling/top_k.h"

namespace vllm_metal {
namespace {

constexpr double kWeightMargin = 1e-3;  // for the rounding of weights, in the exponent

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token_id < b.token_id;
}

template <typename Iterator>
double sum_weights(Iterator begin, Iterator end) {
  return std::accumulate(begin, end, 0.0,
                         [](double sum, const Candidate& c) { return sum + c.weight; });
}

// Weights are sorted coarsely by the leading bits of their float: the exponent and 5 bits of the
// mantissa, which makes buckets of weights within 3% of each other. A weight is at most 1.
constexpr int kDroppedBits = 18;
constexpr int kNumBuckets = (std::bit_cast<int32_t>(1.0f) >> kDroppedBits) + 1;

int bucket_of(const Candidate& candidate) {
  return std::bit_cast<int32_t>(candidate.weight) >> kDroppedBits;
}

// The least likely token before which, from the most likely on, lies less than `mass` > 0.
// A binary search that sorts no further than it looks: each step splits what is left at its
// median, so that all steps together take time linear in the number of candidates.
Candidate last_within_mass(std::span<Candidate> candidates, double mass) {
  auto begin = candidates.begin();
  auto end = candidates.end();
  double mass_before = 0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, more_likely);
    const double mass_before_middle = mass_before + sum_weights(begin, middle);
    if (mass_before_middle < mass) {
      mass_before = mass_before_middle;
      begin = middle;
    } else {
      end = middle;
    }
  }
  return *begin;
}

float exponent_of(double weight) {
  return static_cast<float>(std::max<double>(std::log(weight) - kWeightMargin, kMinExponent));
}

// Tokens of a smaller exponent cannot pass top_p: were all as likely as the bound allows, they
// would still fill no more than the 1 - top_p that is dropped.
float min_exponent_of_top_p(double sum, size_t vocab_size, double top_p) {
  return exponent_of((1.0 - top_p) * sum / static_cast<double>(vocab_size));
}

// A logit below which every exponent is smaller than `min_exponent`. Comparing with it spares the
// division of most logits by the temperature.
float lowest_logit(const RowSoftmax& softmax, float temperature, float min_exponent) {
  const double max = softmax.max();
  if (std::isinf(max)) return softmax.max();
  const double distance = static_cast<double>(min_exponent) * temperature;
  const double rounding = 1e-6 * (std::abs(max) + std::abs(distance));
  return static_cast<float>(max + distance - rounding);
}

}  // namespace

std::span<const Candidate> TokenFilter::keep(RowSoftmax& softmax, const FilterParams& params) {
  const std::span<const float> logits = softmax.logits();
  const bool has_top_p = params.top_p < 1;
  border_ = {};
  if (params.has_top_k(logits.size())) border_.logit = kth_largest(logits, params.top_k, largest_);
  double sum = 0;
  if (params.has_top_k(logits.size()) || params.min_p > 0) {
    collect(softmax, params.temperature, exponent_of(params.min_p), params.min_p);
    sum = sum_weights(candidates_.begin(), candidates_.end());
  } else {
    sum = softmax.sum(params.temperature);
    const float min_exponent =
        has_top_p ? min_exponent_of_top_p(sum, logits.size(), params.top_p) : kMinExponent;
    collect(softmax, params.temperature, min_exponent, /*min_weight=*/0);
  }
  if (params.min_p > 0) {
    border_.logit = std::max_element(candidates_.begin(), candidates_.end(), more_likely)->logit;
  }
  if (has_top_p) apply_top_p(params.top_p * sum);
  return candidates_;
}

// Takes the tokens that the border keeps so far and that have at least this exponent and weight.
void TokenFilter::collect(const RowSoftmax& softmax, float temperature, float min_exponent,
                          float min_weight) {
  const std::span<const float> logits = softmax.logits();
  const float lowest = std::max(border_.logit, lowest_logit(softmax, temperature, min_exponent));
  candidates_.clear();
  size_t id = 0;
  while ((id = next_block_at_least(logits, id, lowest)) < logits.size()) {
    const size_t end = std::min(id + kRowBlock, logits.size());
    for (; id < end; ++id) {
      if (!(logits[id] >= lowest)) continue;
      const float exponent = softmax_exponent(logits[id], softmax.max(), temperature);
      const float weight = exp_of_nonpositive(exponent);
      if (exponent >= min_exponent && weight >= min_weight)
        candidates_.push_back({logits[id], weight, static_cast<int32_t>(id)});
    }
  }
}

void TokenFilter::apply_top_p(double mass) {
  bucket_masses_.assign(kNumBuckets, 0.0);
  for (const Candidate& c : candidates_) bucket_masses_[bucket_of(c)] += c.weight;
  // From the likeliest bucket on to the one in which the running sum reaches the mass.
  int bucket_of_border = kNumBuckets - 1;
  for (int bucket = kNumBuckets - 1; bucket >= 0; --bucket) {
    if (bucket_masses_[bucket] == 0) continue;
    bucket_of_border = bucket;
    if (bucket_masses_[bucket] >= mass) break;
    mass -= bucket_masses_[bucket];
  }
  border_bucket_.clear();
  std::copy_if(candidates_.begin(), candidates_.end(), std::back_inserter(border_bucket_),
               [&](const Candidate& c) { return bucket_of(c) == bucket_of_border; });
  const Candidate last = last_within_mass(border_bucket_, mass);
  border_ = {last.logit, last.token_id};
  std::erase_if(candidates_, [&](const Candidate& c) { return more_likely(last, c); });
}

}  // namespace vllm_metal
