// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/softmax.h"

namespace vllm_metal {

// A token that a draw may return.
struct Candidate {
  float logit;
  float weight;  // exp((logit - max) / temperature)
  int32_t token_id;
};

// The filters of vLLM's sampler, without a sort of the vocabulary.
//   top_k  keeps every logit that is at least the k-th largest, so all of several equal ones
//   top_p  of what top_k left, keeps the most likely tokens up to and including the one with which
//          their probability reaches top_p. Of equal logits at that border the lower ids stay
//          (vLLM's order of equal logits is whatever its sort leaves)
class TopKTopPFilter {
 public:
  // The tokens kept, in the order of ids, without those of no weight; at least one, valid until
  // the next call.
  // top_k in [1, vocab_size], top_p in (0, 1]; those ends keep all.
  std::span<const Candidate> keep(RowSoftmax& softmax, float temperature, int top_k, float top_p);

 private:
  void collect(const RowSoftmax& softmax, float temperature, float min_logit, float min_exponent);
  void apply_top_p(double mass);

  std::vector<Candidate> candidates_;
  std::vector<double> bucket_masses_;  // of candidates by weight, see bucket_of
  std::vector<Candidate> border_;      // the bucket in which top_p is reached, permuted
  std::vector<float> largest_;
};

}  // namespace vllm_metal
