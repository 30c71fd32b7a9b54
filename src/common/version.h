// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace vllm_metal {

// Version of this library, from the VERSION file.
const char* version();

}  // namespace vllm_metal
