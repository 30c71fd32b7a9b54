// SPDX-License-Identifier: Apache-2.0
// The core as a C++ library: token ids in, token ids out.
//
//   generate MODEL_DIR [--max-tokens N] [--dtype D] [--temperature T] [--seed S] ID...
//
// Prints the generated ids on standard output, progress and speed on standard error.
#include <charconv>
#include <chrono>
#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/log.h"
#include "platform/device.h"
#include "runner/model_runner.h"

namespace {

constexpr const char* kUsage =
    "usage: generate MODEL_DIR [--max-tokens N] [--dtype float32|float16|bfloat16] [--temperature "
    "T] [--seed S] ID...\n"
    "MODEL_DIR holds config.json and safetensors; each ID is a token id of the prompt.\n"
    "VLLM_MLX_DEVICE=cpu computes on the CPU.\n";

struct Arguments {
  std::string model_dir;
  int max_tokens = 64;
  std::string dtype = "float16";
  vllm_metal::SamplingParams sampling{.temperature = 0.0f};
  std::vector<int32_t> prompt;
};

// A whole number from 0.
int32_t parse_count(const std::string& word) {
  int32_t number = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc() || end != word.data() + word.size() || number < 0)
    throw std::invalid_argument("'" + word + "' is not a whole number from 0");
  return number;
}

float parse_temperature(const std::string& word) {
  std::istringstream stream(word);
  float number = 0;
  if (!(stream >> number) || !stream.eof())
    throw std::invalid_argument("'" + word + "' is not a number");
  return number;
}

Arguments parse_arguments(int argc, char** argv) {
  Arguments arguments;
  std::vector<std::string> words(argv + 1, argv + argc);
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    auto value = [&]() -> const std::string& {
      if (i + 1 == words.size()) throw std::invalid_argument(word + " needs a value");
      return words[++i];
    };
    if (word == "--max-tokens") {
      arguments.max_tokens = parse_count(value());
    } else if (word == "--dtype") {
      arguments.dtype = value();
    } else if (word == "--temperature") {
      arguments.sampling.temperature = parse_temperature(value());
    } else if (word == "--seed") {
      arguments.sampling.seed = parse_count(value());
    } else if (arguments.model_dir.empty()) {
      arguments.model_dir = word;
    } else {
      arguments.prompt.push_back(parse_count(word));
    }
  }
  if (arguments.model_dir.empty() || arguments.prompt.empty()) throw std::invalid_argument(kUsage);
  return arguments;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void generate(const Arguments& arguments) {
  using namespace vllm_metal;
  const DeviceInfo device = describe_device(select_device(environment().device));
  std::fprintf(stderr, "device: %s (%s)\n", device.name.c_str(), device.backend.c_str());
  ModelRunner runner({arguments.model_dir,
                      read_model_config(arguments.model_dir),
                      parse_dtype(arguments.dtype),
                      {}});
  const auto prompt_len = static_cast<int32_t>(arguments.prompt.size());
  runner.initialize_kv_cache(prompt_len + arguments.max_tokens, 1);

  const auto start = std::chrono::steady_clock::now();
  double prefill_seconds = 0;
  for (int32_t i = 0; i < arguments.max_tokens; ++i) {
    StepInput step;
    if (i == 0) step.new_requests = {{"0", arguments.prompt, arguments.sampling}};
    step.scheduled = {i == 0 ? ScheduledRequest{"0", 0, prompt_len}
                             : ScheduledRequest{"0", prompt_len + i - 1, 1}};
    const int32_t token = runner.step(step).token_ids.front();
    if (token < 0) throw std::runtime_error("the model's logits hold NaN");
    std::printf("%d%s", token, i + 1 == arguments.max_tokens ? "\n" : " ");
    std::fflush(stdout);
    if (i == 0) prefill_seconds = seconds_since(start);
  }
  const double decode_seconds = seconds_since(start) - prefill_seconds;
  std::fprintf(stderr, "prompt: %d tokens, %.1f tokens/s; generation: %.1f tokens/s\n", prompt_len,
               prompt_len / prefill_seconds, (arguments.max_tokens - 1) / decode_seconds);
}

}  // namespace

int main(int argc, char** argv) {
  vllm_metal::set_log_sink([](vllm_metal::LogLevel, const std::string& message) {
    std::fprintf(stderr, "%s\n", message.c_str());
  });
  try {
    generate(parse_arguments(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
