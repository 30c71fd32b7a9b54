// SPDX-License-Identifier: Apache-2.0
#include "sampling/top_k_top_p.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

#include "sampling/top_k.h"

namespace vllm_metal {
namespace {

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

// Tokens of a smaller exponent cannot pass top_p: were all as likely as the bound allows, they
// would still fill no more than the 1 - top_p that is dropped.
float min_exponent_of_top_p(double sum, size_t vocab_size, double top_p) {
  const double weight = (1.0 - top_p) * sum / static_cast<double>(vocab_size);
  constexpr double kMargin = 1e-3;  // for the rounding of weights
  const double exponent = std::log(weight) - kMargin;
  return static_cast<float>(std::max<double>(exponent, kMinExponent));
}

}  // namespace

std::span<const Candidate> TopKTopPFilter::keep(RowSoftmax& softmax, float temperature, int top_k,
                                                float top_p) {
  const std::span<const float> logits = softmax.logits();
  const bool has_top_p = top_p < 1;
  double sum = 0;
  if (static_cast<size_t>(top_k) < logits.size()) {
    collect(softmax, temperature, kth_largest(logits, top_k, largest_), kMinExponent);
    sum = sum_weights(candidates_.begin(), candidates_.end());
  } else {
    sum = softmax.sum(temperature);
    collect(softmax, temperature, -std::numeric_limits<float>::infinity(),
            has_top_p ? min_exponent_of_top_p(sum, logits.size(), top_p) : kMinExponent);
  }
  if (has_top_p) apply_top_p(top_p * sum);
  return candidates_;
}

void TopKTopPFilter::collect(const RowSoftmax& softmax, float temperature, float min_logit,
                             float min_exponent) {
  constexpr size_t kBlockSize = 64;
  const std::span<const float> logits = softmax.logits();
  candidates_.clear();
  for (size_t begin = 0; begin < logits.size(); begin += kBlockSize) {
    const auto block = logits.subspan(begin, std::min(kBlockSize, logits.size() - begin));
    std::array<float, kBlockSize> exponents;
    const auto passes = [&](size_t i) {
      return block[i] >= min_logit && exponents[i] >= min_exponent;
    };
    // Most blocks hold nothing: counting first lets the compiler vectorise their part.
    int num_passing = 0;
    for (size_t i = 0; i < block.size(); ++i) {
      exponents[i] = softmax_exponent(block[i], softmax.max(), temperature);
      num_passing += passes(i);
    }
    if (num_passing == 0) continue;
    for (size_t i = 0; i < block.size(); ++i) {
      if (!passes(i)) continue;
      candidates_.push_back(
          {block[i], exp_of_nonpositive(exponents[i]), static_cast<int32_t>(begin + i)});
    }
  }
}

void TopKTopPFilter::apply_top_p(double mass) {
  bucket_masses_.assign(kNumBuckets, 0.0);
  for (const Candidate& c : candidates_) bucket_masses_[bucket_of(c)] += c.weight;
  // From the likeliest bucket on to the one in which the running sum reaches the mass.
  int border = kNumBuckets - 1;
  for (int bucket = border; bucket >= 0; --bucket) {
    if (bucket_masses_[bucket] == 0) continue;
    border = bucket;
    if (bucket_masses_[bucket] >= mass) break;
    mass -= bucket_masses_[bucket];
  }
  border_.clear();
  std::copy_if(candidates_.begin(), candidates_.end(), std::back_inserter(border_),
               [&](const Candidate& c) { return bucket_of(c) == border; });
  const Candidate last = last_within_mass(border_, mass);
  std::erase_if(candidates_, [&](const Candidate& c) { return more_likely(last, c); });
}

}  // namespace vllm_metal
