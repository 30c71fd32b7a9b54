// SPDX-License-Identifier: Apache-2.0
#include "sampling/sampling_params.h"

#include <cmath>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

void SamplingParams::validate() const {
  // Each condition is written so that NaN fails it.
  if (!(std::isfinite(temperature) && temperature >= 0)) {
    throw std::invalid_argument(
        text("[sampling_params] temperature must be a finite number of at least 0 but got ",
             temperature, "."));
  }
  if (!(top_p > 0 && top_p <= 1)) {
    throw std::invalid_argument(
        text("[sampling_params] top_p must be in (0, 1] but got ", top_p, "."));
  }
  if (top_k < -1) {
    throw std::invalid_argument(text(
        "[sampling_params] top_k must be 0 or -1 (all tokens) or at least 1 but got ", top_k, "."));
  }
  if (num_logprobs && *num_logprobs < -1) {
    throw std::invalid_argument(text(
        "[sampling_params] num_logprobs must be -1 (the whole vocabulary) or at least 0 but got ",
        *num_logprobs, "."));
  }
}

}  // namespace vllm_metal
