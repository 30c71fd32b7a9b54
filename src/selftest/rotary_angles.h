// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal::selftest {

// float32 [num_tokens, rotary_dim]: cosines, then sines, of consecutive positions.
inline mx::array rotary_angles(int num_tokens, int rotary_dim, int first_position) {
  std::vector<float> values;
  for (int token = 0; token < num_tokens; ++token) {
    for (double (*function)(double) :
         {+[](double x) { return std::cos(x); }, +[](double x) { return std::sin(x); }}) {
      for (int i = 0; i < rotary_dim / 2; ++i) {
        const double frequency = std::pow(10000.0, -2.0 * i / rotary_dim);
        values.push_back(static_cast<float>(function((first_position + token) * frequency)));
      }
    }
  }
  return mx::array(values.begin(), {num_tokens, rotary_dim}, mx::float32);
}

}  // namespace vllm_metal::selftest
