// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string>

namespace vllm_metal::test {

// What `function` says when it throws.
template <typename Function>
std::string error_of(const Function& function) {
  try {
    function();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace vllm_metal::test
