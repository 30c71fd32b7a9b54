// SPDX-License-Identifier: Apache-2.0
// The table of ops: each a case that computes on inputs of a given precision, whatever the device.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/mlx.h"
#include "selftest/numbers.h"

namespace vllm_metal::selftest {

// Makes the inputs of a case: the same numbers every time, rounded to one dtype and held in it or
// in a wider one.
struct Numbers {
  mx::Dtype rounded_to;
  mx::Dtype held_in;

  mx::array operator()(const mx::Shape& shape, unsigned seed, float deviation = 1.0f) const {
    return hold(random_array(shape, rounded_to, seed, deviation));
  }
  mx::array hold(const mx::array& x) const { return mx::astype(x, held_in); }
};

// How far a result may be from the one in float32.
enum class Exactness {
  kCopy,     // not at all
  kRounded,  // computed in float32, rounded once
  kProduct,  // the same, of weights that some processors round to bfloat16 (see packed_linear)
};

struct OpCase {
  std::string name;  // "<op>/<case>" or "<op>"
  Exactness exactness;
  // Whether the GPU takes our kernels for it; null: it has none.
  std::function<bool(mx::Dtype)> gpu_kernels;
  std::function<std::vector<mx::array>(const Numbers&)> compute;
};

// Those of caches with this head size.
std::function<bool(mx::Dtype)> cache_kernels_of(int head_dim);

// Of caches that cases have: all with GPU kernels, or two of them.
std::vector<int> head_dims(bool quick);

std::vector<OpCase> layer_cases(bool quick);      // norms, activation, rotation, products
std::vector<OpCase> cache_cases(bool quick);      // what writes the KV cache
std::vector<OpCase> attention_cases(bool quick);  // what reads it

}  // namespace vllm_metal::selftest
