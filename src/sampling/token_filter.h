// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "sampling/sampling_params.h"
#include "sampling/softmax.h"

namespace vllm_metal {

// A token that a draw may return.
struct Candidate {
  float logit;
  float weight;  // exp((logit - max) / temperature)
  int32_t token_id;
};

// What a draw leaves out, as in SamplingParams.
struct FilterParams {
  float temperature = 1.0f;
  int top_k = 0;  // 0 or -1: all
  float top_p = 1.0f;
  float min_p = 0.0f;

  static FilterParams of(const SamplingParams& params) {
    return {params.temperature, params.top_k, params.top_p, params.min_p};
  }
  bool has_top_k(size_t vocab_size) const {
    return top_k > 0 && static_cast<size_t>(top_k) < vocab_size;
  }
  bool keeps_all(size_t vocab_size) const {
    return !has_top_k(vocab_size) && top_p == 1 && min_p == 0;
  }
};

// The least likely token that a filter keeps: all of larger logits are kept, and of equal ones
// those up to its id.
struct FilterBorder {
  float logit = -std::numeric_limits<float>::infinity();
  int32_t token_id = std::numeric_limits<int32_t>::max();
};

// The filters of vLLM's sampler, without a sort of the vocabulary.
//   min_p  keeps the tokens at least min_p times as likely as the likeliest
//   top_k  keeps every logit that is at least the k-th largest, so all of several equal ones
//   top_p  of what those left, keeps the most likely tokens up to and including the one with which
//          their probability reaches top_p. Of equal logits at that border the lower ids stay
//          (vLLM's order of equal logits is whatever its sort leaves)
class TokenFilter {
 public:
  // The tokens kept, in the order of ids, without those of no weight; at least one, valid until
  // the next call.
  std::span<const Candidate> keep(RowSoftmax& softmax, const FilterParams& params);

  // Of the last call. Says of tokens too unlikely to have a weight whether they were kept, too.
  const FilterBorder& border() const { return border_; }

 private:
  void collect(const RowSoftmax& softmax, float temperature, float min_exponent, float min_weight);
  void apply_top_p(double mass);

  std::vector<Candidate> candidates_;
  FilterBorder border_;
  std::vector<double> bucket_masses_;     // of candidates by weight, see bucket_of
  std::vector<Candidate> border_bucket_;  // in which top_p is reached, permuted
  std::vector<float> largest_;
};

}  // namespace vllm_metal
