// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace vllm_metal::cpu {

// The element types that the kernels read and write. No functions here: the SIMD sources include
// this file (see cmake/SimdKernels.cmake).
enum class ElementType { kFloat32, kFloat16, kBfloat16 };

}  // namespace vllm_metal::cpu
