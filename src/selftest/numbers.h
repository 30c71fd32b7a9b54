// SPDX-License-Identifier: Apache-2.0
// Reproducible inputs of ops, their results as numbers, and how far these may be from the truth:
// what the self-test and the C++ tests share.
#pragma once

#include <random>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal::selftest {

struct Tolerance {
  double relative;
  double absolute;
};

// For results computed in float32 and rounded once: half a unit in the last place, and a little.
inline Tolerance tolerance_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return {1e-5, 1e-5};
  if (dtype == mx::float16) return {5.2e-4, 2e-5};
  return {4.1e-3, 2e-5};
}

// For MLX's own ops, which round on the way.
inline Tolerance fallback_tolerance_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return {2e-5, 2e-5};
  if (dtype == mx::float16) return {4e-3, 4e-3};
  return {3e-2, 3e-2};
}

// The values of `x` in row-major order, as they are after rounding to its dtype.
inline std::vector<double> values_of(const mx::array& x) {
  mx::array flat = mx::contiguous(mx::flatten(mx::astype(x, mx::float32)));
  mx::eval(flat);
  return std::vector<double>(flat.data<float>(), flat.data<float>() + flat.size());
}

inline mx::array random_array(const mx::Shape& shape, mx::Dtype dtype, unsigned seed,
                              float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  size_t size = 1;
  for (int extent : shape) size *= extent;
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  mx::array result = mx::astype(mx::array(values.begin(), shape, mx::float32), dtype);
  mx::eval(result);
  return result;
}

}  // namespace vllm_metal::selftest
