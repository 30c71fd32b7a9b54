// SPDX-License-Identifier: Apache-2.0
// Every use of MLX's buffer-level API, which changes between its patch releases.
#pragma once

#include "common/mlx.h"

namespace vllm_metal {

// A row-contiguous array with its own, uninitialised memory. Not a graph node: the
// caller fills it through `array.data<T>()` before any op reads it.
mx::array uninitialized(const mx::Shape& shape, mx::Dtype dtype);

// For the eval of a primitive: gives `output` (row contiguous) memory of its own.
void allocate_output(mx::array& output);

// For the eval of a primitive: makes `output` the same memory as `input`, whoever else
// holds it. Only kv_write and copy_blocks may: the cache is written in place, and
// the stream's order keeps readers of the step before from seeing the write.
void alias_output(mx::array& output, const mx::array& input);

}  // namespace vllm_metal
