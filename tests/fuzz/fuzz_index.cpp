// SPDX-License-Identifier: Apache-2.0
#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  vllm_metal::fuzz_index(std::as_bytes(std::span(data, size)));
  return 0;
}
