// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cpu/simd/linear.h"

namespace vllm_metal::cpu {

// One product of activations and a weight matrix on the pool's threads, with the kernels of the
// instruction set in use when it is made. No MLX here: pointers that must outlive it. The
// result is the same, bit for bit, for any number of threads.
class Matmul {
 public:
  Matmul(const WeightRows& weight, const TokenRows& tokens, const LinearOutput& output);

  // Floats of memory that run() needs.
  int64_t workspace_floats() const;
  void run(float* workspace) const;

 private:
  const StreamingKernels& streaming() const;
  const BlockedKernels& blocked() const;
  bool is_streaming() const;
  void run_streaming(float* input) const;
  void run_blocked(float* input) const;

  const LinearKernels& kernels_;
  WeightRows weight_;
  TokenRows tokens_;
  LinearOutput output_;
};

// Rows `ids` of `weight`, to `out` [num_ids, in_features] of `type`. Negative ids count from the
// end; those that are still outside read the first or last row.
void gather_rows(const WeightRows& weight, const int32_t* ids, int64_t num_ids, void* out,
                 ElementType type);

}  // namespace vllm_metal::cpu
