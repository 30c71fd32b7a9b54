// SPDX-License-Identifier: Apache-2.0
#include "runner/graph_size.h"

#include <unordered_set>

namespace vllm_metal {

size_t graph_size(const std::vector<mx::array>& outputs) {
  std::unordered_set<std::uintptr_t> visited;
  std::vector<mx::array> stack(outputs);
  size_t nodes = 0;
  while (!stack.empty()) {
    const mx::array array = stack.back();
    stack.pop_back();
    if (!array.has_primitive() || array.status() != mx::array::Status::unscheduled) continue;
    if (!visited.insert(array.id()).second) continue;
    for (const auto& sibling : array.siblings()) visited.insert(sibling.id());
    ++nodes;
    for (const auto& input : array.inputs()) stack.push_back(input);
  }
  return nodes;
}

}  // namespace vllm_metal
