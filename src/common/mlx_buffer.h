// SPDX-License-Identifier: Apache-2.0
// Every use of MLX's buffer-level API, which changes between its patch releases.
#pragma once

#include <cstddef>

#include "common/mlx.h"

namespace vllm_metal {

// Throws std::runtime_error where a CPU's memory does not have so many bytes: MLX's allocator
// counts them and returns null then, which its ops write to. Allocators of GPUs throw by
// themselves. The functions below ask for what they allocate.
void expect_memory(size_t bytes);

// What they leave for ops of MLX's own, until the next call: `bytes` and a megabyte.
void leave_memory_free(size_t bytes);

// A row-contiguous array with its own, uninitialised memory. Not a graph node: the
// caller fills it through `array.data<T>()` before any op reads it.
mx::array uninitialized(const mx::Shape& shape, mx::Dtype dtype);

// For the eval of a primitive: gives `output` (row contiguous) memory from MLX's allocator, which
// on Metal keeps what is freed.
void allocate_from_mlx(mx::array& output);

// The same with memory of our own: `release(buffer)` is called when no array has it any more.
void adopt_buffer(mx::array& output, void* buffer, void (*release)(void* buffer));

// For the eval of a primitive on the CPU: gives `output` (row contiguous) memory of its own. Large
// outputs get that of earlier ones: fresh memory costs a page fault for every 4 KB, a tenth of the
// time of a large step.
void allocate_output(mx::array& output);

// An array whose memory is that of `block` (uint8, row contiguous) from byte `offset` on, a
// multiple of 64. The block lives as long as any of them.
mx::array part_of(const mx::array& block, size_t offset, const mx::Shape& shape, mx::Dtype dtype);

// What is kept for outputs to come: no more than kMaxReusableBytes, and nothing after the second.
constexpr size_t kMaxReusableBytes = size_t{256} << 20;
size_t reusable_bytes();
void release_reusable_memory();

// MLX's memory in bytes.
struct MemoryUse {
  size_t active;  // of arrays
  size_t peak;    // of `active` and what was reusable then, since the start
  size_t cache;   // of no array, for those to come
};
MemoryUse memory_use();

// The same array, which holds no buffer: for a task that reads one of its primitive's inputs or
// temporaries, which MLX holds until it is done. Only the task may ask for the pointer where a GPU
// computes the input: on CUDA asking moves the memory, which must be computed by then.
mx::array weak_handle(const mx::array& array);

// For the eval of a primitive: makes `output` the same memory as `input`, whoever else
// holds it. Only kv_write, rotary_kv_write and copy_blocks may: the cache is written in place, and
// the stream's order keeps readers of the step before from seeing the write.
void alias_output(mx::array& output, const mx::array& input);

}  // namespace vllm_metal
