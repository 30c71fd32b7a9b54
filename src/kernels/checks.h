// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/mlx.h"

namespace vllm_metal {

// Checks that several ops share. All throw std::invalid_argument, naming the op, the argument,
// what it is and what is allowed.

// `x` is float32, float16 or bfloat16.
void check_floating(const char* op, const char* name, const mx::array& x);

// `x` has the dtype of `other`.
void check_same_dtype(const char* op, const char* name, const mx::array& x, const char* other_name,
                      const mx::array& other);

// `x` has so many dimensions.
void check_rank(const char* op, const char* name, const mx::array& x, int rank);

// `x` has exactly this shape.
void check_shape(const char* op, const char* name, const mx::array& x, const mx::Shape& shape);

// A layer's key cache and value cache have one shape, of three dimensions, and one dtype.
void check_caches(const char* op, const mx::array& keys, const mx::array& values);

}  // namespace vllm_metal
