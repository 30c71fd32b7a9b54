// SPDX-License-Identifier: Apache-2.0
// A program for benchmarks/count_instructions.py: decodes greedily with a model so small that a
// step is host work, of as many layers as a real one. Usage: decode_steps batch steps
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>

#include "common/text.h"
#include "kernels/cpu/isa.h"
#include "runner/model_runner.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal {
namespace {

constexpr int kBlockSize = 16;
constexpr int kPromptTokens = 4;
constexpr int kMaxSteps = 1000;

int parse_count(const char* word, int highest) {
  const int count = std::atoi(word);
  if (count >= 1 && count <= highest) return count;
  throw std::invalid_argument(text("a count must lie in [1, ", highest, "] but is ", word, "."));
}

void decode(int batch, int num_steps) {
  mx::set_default_device(mx::Device::cpu);
  cpu::set_isa(cpu::Isa::kBaseline);  // the only one that every machine can count
  const test::TempDir dir;
  test::TinyLlama{.num_layers = 30,
                  .num_heads = 9,
                  .num_kv_heads = 3,
                  .head_dim = 8,
                  .vocab_size = 256,
                  .dtype = mx::float16}
      .write(dir);
  ModelRunner runner({dir.path(), read_model_config(dir.path()), mx::float16, {}});
  runner.initialize_kv_cache(int64_t{batch} * (kMaxSteps + kBlockSize), kBlockSize);

  StepInput input;
  for (int i = 0; i < batch; ++i) {
    const std::string id = text("request ", i);
    input.new_requests.push_back({id, {1, 2, 3, 4 + i}, {.temperature = 0.0f}});
    input.scheduled.push_back({id, 0, kPromptTokens});
  }
  runner.step(input);
  input.new_requests.clear();
  PendingOutput last;  // two steps are under way, as under vLLM
  for (int step = 0; step < num_steps; ++step) {
    for (auto& request : input.scheduled) {
      request.num_computed_tokens = kPromptTokens + step;
      request.num_scheduled_tokens = 1;
    }
    runner.launch(input);
    const PendingOutput output = runner.draw();
    if (last.valid()) last.get();
    last = output;
  }
  last.get();
}

}  // namespace
}  // namespace vllm_metal

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw std::invalid_argument("usage: decode_steps batch steps");
    const int batch = vllm_metal::parse_count(argv[1], 128);
    vllm_metal::decode(batch, vllm_metal::parse_count(argv[2], vllm_metal::kMaxSteps));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
