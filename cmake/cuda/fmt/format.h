// SPDX-License-Identifier: Apache-2.0
// Stands in for the {fmt} library: MLX's CUDA headers use it for one message, its wheel does not
// carry it.
#pragma once

#include <string>

namespace fmt {

template <typename... Args>
std::string format(const char* message, const Args&...) {
  return message;
}

}  // namespace fmt
