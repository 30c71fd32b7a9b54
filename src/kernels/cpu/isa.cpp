// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal::cpu {

namespace {

// -1: not chosen, use the best.
std::atomic<int> chosen{-1};

Isa best_isa() {
  static const Isa best = supported_isas().front();
  return best;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  throw std::invalid_argument(text("[isa] unknown instruction set ", static_cast<int>(isa), "."));
}

// The features asked for are those that cmake/SimdKernels.cmake compiles with.
std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
  if (avx512) isas.push_back(Isa::kAvx512);
  if (avx2) isas.push_back(Isa::kAvx2);
#endif
  isas.push_back(Isa::kBaseline);
  return isas;
}

Isa current_isa() {
  const int isa = chosen.load(std::memory_order_relaxed);
  return isa < 0 ? best_isa() : static_cast<Isa>(isa);
}

void set_isa(Isa isa) {
  const auto isas = supported_isas();
  if (std::find(isas.begin(), isas.end(), isa) == isas.end()) {
    std::vector<const char*> names;
    for (Isa supported : isas) names.push_back(name_of(supported));
    throw std::invalid_argument(
        text("[isa] this processor does not run ", name_of(isa), "; it runs ", join(names), "."));
  }
  chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace vllm_metal::cpu
