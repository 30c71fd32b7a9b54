// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/mlx.h"

namespace vllm_metal {

// Whether ops on the current default device should use our kernels of that device. False
// sends every op to its fallback: tests compare the two. Set before any op is built; not
// thread-safe against ops being built.
bool device_kernels_enabled();
void set_device_kernels_enabled(bool enabled);

// True when the default device is the CPU and kernels are enabled: where an op asks for its
// CPU kernel.
bool use_cpu_kernels();

// The same for the GPU, where this build has kernels for it: Metal's on a Mac, CUDA's where MLX is
// the one for CUDA.
bool use_gpu_kernels();

// And whether they take this cache, [num_rows, num_kv_heads, head_dim]: on a Mac that is known when
// Metal has compiled them, which the first call does (kernels/gpu/kernel_guard.h).
bool use_gpu_cache_kernels(const mx::array& cache);

// Whether elementwise ops go to MLX's compiler, which makes one kernel of them: on GPUs. On a CPU
// it would run a C++ compiler.
bool use_compiled_ops();

}  // namespace vllm_metal
