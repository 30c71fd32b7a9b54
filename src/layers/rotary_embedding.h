// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "attention/forward_context.h"
#include "config/rope_config.h"

namespace vllm_metal {

// Angles of rotary position embedding (arXiv:2104.09864) and its extensions to longer contexts:
// linear, dynamic NTK, Llama 3.1's, YaRN (arXiv:2309.00071). Computed on the host once a step and
// used by every layer.
class RotaryEmbedding {
 public:
  // Throws std::invalid_argument when head_dim * partial_rotary_factor is not even and positive.
  RotaryEmbedding(const RopeConfig& config, int head_dim);

  // float32 [num_tokens, rotary_dim]: cosines of each token's angles, then sines, both times the
  // attention factor. Dynamic scaling follows each request's own known length, so that a
  // request's keys do not depend on its neighbours or on how its prompt is cut into chunks.
  mx::array cos_sin(const ForwardContext& context) const;

  int rotary_dim() const { return rotary_dim_; }
  // Angle per position of each pair of dimensions, for a request of that length.
  std::vector<float> inverse_frequencies(int request_len) const;

 private:
  RopeConfig config_;
  int rotary_dim_;
  std::vector<float>
      inverse_frequencies_;  // [rotary_dim / 2], of all types but dynamic's long requests
};

}  // namespace vllm_metal
