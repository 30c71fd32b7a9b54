// SPDX-License-Identifier: Apache-2.0
// The environment variables of the project: the only place that calls getenv.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace vllm_metal {

enum class DeviceChoice { kGpuIfAvailable, kGpu, kCpu };

// Their values, checked. Boolean variables take 0/1, true/false, yes/no, on/off.
struct Environment {
  bool use_mlx = true;                                  // VLLM_METAL_USE_MLX
  DeviceChoice device = DeviceChoice::kGpuIfAvailable;  // VLLM_MLX_DEVICE
  int block_size = 16;                                  // VLLM_METAL_BLOCK_SIZE, tokens
  bool block_size_is_set = false;
  bool paged_attention = false;           // VLLM_METAL_USE_PAGED_ATTENTION
  bool debug = false;                     // VLLM_METAL_DEBUG
  std::optional<double> memory_fraction;  // VLLM_METAL_MEMORY_FRACTION, in (0, 1]; none: auto
  std::optional<bool> prefix_cache;       // VLLM_METAL_PREFIX_CACHE; none: vLLM's options decide
  double prefix_cache_fraction = 0.05;    // VLLM_METAL_PREFIX_CACHE_FRACTION, in (0, 1]

  using Lookup = std::function<const char*(const char* name)>;

  // Reads all variables. Throws std::invalid_argument naming the variable, its value and what is
  // allowed.
  static Environment read(const Lookup& lookup);
};

// The process's environment, read at the first call.
const Environment& environment();

// The convention of OpenMP programs: at most this many threads. The variable may be a list, one
// number a nesting level; the first counts. 0: unset or not a number.
int omp_num_threads();

// The folder of the CUDA toolkit: CUDA_HOME, else CUDA_PATH, else empty.
std::string cuda_home();

// One row of the table of variables, for `vllm-metal doctor` and the documentation.
struct VariableState {
  std::string name;
  std::string value;  // as set, or the default
  std::string default_value;
  std::string meaning;
  bool is_set;
};

// All variables in the order of the documentation. Throws like Environment::read.
std::vector<VariableState> describe_environment();

}  // namespace vllm_metal
