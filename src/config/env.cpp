// SPDX-License-Identifier: Apache-2.0
#include "config/env.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <locale>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "common/text.h"

namespace vllm_metal {

namespace {

struct Variable {
  const char* name;
  const char* default_value;
  const char* meaning;
};

constexpr std::array<Variable, 10> kVariables{{
    {"VLLM_METAL_MEMORY_FRACTION", "auto",
     "`auto`: memory for the model and a KV cache of little more than one sequence; or the share "
     "of all memory to use, in (0, 1]"},
    {"VLLM_METAL_USE_MLX", "1",
     "compute with MLX; `0`: the plugin steps aside and vLLM's own PyTorch back end runs, if its "
     "build has kernels"},
    {"VLLM_MLX_DEVICE", "gpu",
     "`gpu` (Metal on a Mac, CUDA elsewhere) or `cpu`. Unset and no GPU: the CPU, with one "
     "warning; set to `gpu` and none there: an error"},
    {"VLLM_METAL_BLOCK_SIZE", "16",
     "tokens in a block by which vLLM counts the KV cache, 1 to 1024; with a different "
     "`--block-size` an error"},
    {"VLLM_METAL_USE_PAGED_ATTENTION", "0",
     "`1`: vLLM's paged KV cache with prefix caching, of blocks of 8, 16, 32, 64 or 128 tokens; "
     "`0`: the MLX-managed cache"},
    {"VLLM_METAL_DEBUG", "0", "`1`: one log line a step with its shape, time and memory"},
    {"VLLM_USE_MODELSCOPE", "False",
     "`True`: models come from ModelScope, with the extra `modelscope` installed"},
    {"VLLM_METAL_MODELSCOPE_CACHE", "",
     "with ModelScope: a folder with a config.json is the model itself; any other path is the "
     "cache directory"},
    {"VLLM_METAL_PREFIX_CACHE", "",
     "`1`: prompts that begin alike are computed once, `0`: each is. Unset: `1` with vLLM's paged "
     "KV cache, else `0`. `--enable-prefix-caching` and `--no-enable-prefix-caching` come first"},
    {"VLLM_METAL_PREFIX_CACHE_FRACTION", "0.05",
     "with the MLX-managed cache: share of the memory that the device recommends to use at most, "
     "or has, for prefixes, in (0, 1]"},
}};

[[noreturn]] void refuse(const char* name, const std::string& value, const std::string& allowed) {
  throw std::invalid_argument(
      text("[environment] ", name, " must be ", allowed, " but is '", value, "'."));
}

// An empty value counts as unset, as shells leave it behind.
std::optional<std::string> value_of(const Environment::Lookup& lookup, const char* name) {
  const char* value = lookup(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

std::string lower_case(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return value;
}

bool read_bool(const Environment::Lookup& lookup, const char* name, bool default_value) {
  auto value = value_of(lookup, name);
  if (!value) return default_value;
  const std::string lower = lower_case(*value);
  for (const char* yes : {"1", "true", "yes", "on"})
    if (lower == yes) return true;
  for (const char* no : {"0", "false", "no", "off"})
    if (lower == no) return false;
  refuse(name, *value, "0 or 1");
}

int read_int(const Environment::Lookup& lookup, const char* name, int default_value, int low,
             int high) {
  auto value = value_of(lookup, name);
  if (!value) return default_value;
  int number = 0;
  auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
  if (error != std::errc() || end != value->data() + value->size() || number < low || number > high)
    refuse(name, *value, text("an integer from ", low, " to ", high));
  return number;
}

DeviceChoice read_device(const Environment::Lookup& lookup) {
  auto value = value_of(lookup, "VLLM_MLX_DEVICE");
  if (!value) return DeviceChoice::kGpuIfAvailable;
  if (*value == "gpu") return DeviceChoice::kGpu;
  if (*value == "cpu") return DeviceChoice::kCpu;
  refuse("VLLM_MLX_DEVICE", *value, "gpu or cpu");
}

// A number in (0, 1]; none when it is unset or `word`, where there is one.
std::optional<double> read_share(const Environment::Lookup& lookup, const char* name,
                                 const std::string& word = "") {
  auto value = value_of(lookup, name);
  if (!value || *value == word) return std::nullopt;
  std::istringstream stream(*value);
  stream.imbue(std::locale::classic());
  double number = 0;
  if (!(stream >> number) || !(stream >> std::ws).eof() || !(number > 0 && number <= 1))
    refuse(name, *value, text(word, word.empty() ? "" : " or ", "a number in (0, 1]"));
  return number;
}

// vLLM reads it for itself, and takes `yes` and `on` for false.
void check_use_modelscope(const Environment::Lookup& lookup) {
  auto value = value_of(lookup, "VLLM_USE_MODELSCOPE");
  if (!value) return;
  const std::string lower = lower_case(*value);
  if (lower != "1" && lower != "true" && lower != "0" && lower != "false")
    refuse("VLLM_USE_MODELSCOPE", *value, "True or False");
}

const char* process_lookup(const char* name) { return std::getenv(name); }

}  // namespace

Environment Environment::read(const Lookup& lookup) {
  check_use_modelscope(lookup);
  Environment env;
  env.use_mlx = read_bool(lookup, "VLLM_METAL_USE_MLX", true);
  env.device = read_device(lookup);
  env.block_size = read_int(lookup, "VLLM_METAL_BLOCK_SIZE", 16, 1, 1024);
  env.block_size_is_set = value_of(lookup, "VLLM_METAL_BLOCK_SIZE").has_value();
  env.paged_attention = read_bool(lookup, "VLLM_METAL_USE_PAGED_ATTENTION", false);
  env.debug = read_bool(lookup, "VLLM_METAL_DEBUG", false);
  env.memory_fraction = read_share(lookup, "VLLM_METAL_MEMORY_FRACTION", "auto");
  if (value_of(lookup, "VLLM_METAL_PREFIX_CACHE"))
    env.prefix_cache = read_bool(lookup, "VLLM_METAL_PREFIX_CACHE", false);
  env.prefix_cache_fraction =
      read_share(lookup, "VLLM_METAL_PREFIX_CACHE_FRACTION").value_or(env.prefix_cache_fraction);
  return env;
}

const Environment& environment() {
  static const Environment env = Environment::read(process_lookup);
  return env;
}

int omp_num_threads() {
  const std::string value = value_of(process_lookup, "OMP_NUM_THREADS").value_or("");
  int number = 0;
  std::from_chars(value.data(), value.data() + value.size(), number);
  return std::max(number, 0);
}

std::string cuda_home() {
  if (auto home = value_of(process_lookup, "CUDA_HOME")) return *home;
  return value_of(process_lookup, "CUDA_PATH").value_or("");
}

std::vector<VariableState> describe_environment() {
  Environment::read(process_lookup);
  std::vector<VariableState> states;
  for (const auto& variable : kVariables) {
    auto value = value_of(process_lookup, variable.name);
    states.push_back({variable.name, value.value_or(variable.default_value), variable.default_value,
                      variable.meaning, value.has_value()});
  }
  return states;
}

}  // namespace vllm_metal
