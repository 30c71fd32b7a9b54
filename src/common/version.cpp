// SPDX-License-Identifier: Apache-2.0
#include "common/version.h"

namespace vllm_metal {

const char* version() { return VLLM_METAL_VERSION; }

}  // namespace vllm_metal
