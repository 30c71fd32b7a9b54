// SPDX-License-Identifier: Apache-2.0
// Stands in for libFuzzer where there is none: `fuzz_<target> -max_total_time=<s>
// -artifact_prefix=<folder>/ <folder of seeds>...` runs the target on seeded mutants for so long,
// or, given files, on these. The input that ends the program is written to `crash-mutant`.
#include <sanitizer/common_interface_defs.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "mutator.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

vllm_metal::Bytes input;
std::string artifact = "crash-mutant";

void keep_input() {
  std::FILE* file = std::fopen(artifact.c_str(), "wb");
  if (!file) return;
  std::fwrite(input.data(), 1, input.size(), file);
  std::fclose(file);
  std::fprintf(stderr, "the input is in %s\n", artifact.c_str());
}

void run_input() {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  using Clock = std::chrono::steady_clock;
  long seconds = 60;
  uint32_t seed = 20240229;
  std::vector<vllm_metal::Bytes> corpus;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    auto value = [&] { return argument.substr(argument.find('=') + 1); };
    if (argument.starts_with("-max_total_time=")) seconds = std::stol(value());
    if (argument.starts_with("-seed=")) seed = static_cast<uint32_t>(std::stoul(value()));
    if (argument.starts_with("-artifact_prefix=")) artifact = value() + "crash-mutant";
    if (argument.starts_with("-")) continue;
    if (std::filesystem::is_directory(argument)) {
      for (auto& file : vllm_metal::read_corpus(argument)) corpus.push_back(std::move(file));
    } else {
      std::ifstream file(argument, std::ios::binary);
      const std::string content{std::istreambuf_iterator<char>(file), {}};
      const auto bytes = std::as_bytes(std::span(content));
      input.assign(bytes.begin(), bytes.end());
      run_input();
    }
  }
  if (corpus.empty()) return 0;
  __sanitizer_set_death_callback(&keep_input);
  vllm_metal::Mutator mutator(seed);
  const auto end = Clock::now() + std::chrono::seconds(seconds);
  unsigned long runs = 0;
  for (; Clock::now() < end; ++runs) {
    input = mutator.mutant(corpus);
    run_input();
  }
  std::fprintf(stderr, "stat::number_of_executed_units: %lu\n", runs);
}
