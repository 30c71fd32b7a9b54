// SPDX-License-Identifier: Apache-2.0
// Quantised matrices of random numbers.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/linear.h"
#include "selftest/numbers.h"

namespace vllm_metal::selftest {

// Random bits, scales and biases.
inline QuantizedMatrix random_quantized(int out_features, int in_features, int group_size, int bits,
                                        mx::Dtype dtype, uint32_t seed) {
  const int num_words = in_features * bits / 32;
  std::mt19937 generator(seed);
  std::vector<uint32_t> words(static_cast<size_t>(out_features) * num_words);
  for (auto& word : words) word = generator();
  const mx::Shape groups{out_features, in_features / group_size};
  const mx::array weight(words.begin(), {out_features, num_words}, mx::uint32);
  return {.weight = weight,
          .scales = random_array(groups, dtype, seed + 1),
          .biases = random_array(groups, dtype, seed + 2),
          .group_size = group_size,
          .bits = bits};
}

}  // namespace vllm_metal::selftest
