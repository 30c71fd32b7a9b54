// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/workspace.h"

#include <map>
#include <mutex>

namespace vllm_metal::cpu {

std::shared_ptr<const AlignedFloats> stream_workspace(mx::Stream stream, int64_t floats) {
  static std::mutex mutex;
  static std::map<int, std::shared_ptr<const AlignedFloats>> workspaces;  // by the stream's index
  std::lock_guard lock(mutex);
  auto& workspace = workspaces[stream.index];
  if (workspace == nullptr || workspace->size() < floats)
    workspace = std::make_shared<const AlignedFloats>(floats);
  return workspace;
}

}  // namespace vllm_metal::cpu
