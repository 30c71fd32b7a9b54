// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cpu/simd/vector.h"

namespace vllm_metal::cpu::VLLM_METAL_ISA {

// a0 b0 a1 b1 ... of the lower and of the upper halves.
#if VLLM_METAL_VECTOR_BYTES == 64
VLLM_METAL_INLINE Floats zip_low(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
VLLM_METAL_INLINE Floats zip_high(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}
#elif VLLM_METAL_VECTOR_BYTES == 32
VLLM_METAL_INLINE Floats zip_low(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
VLLM_METAL_INLINE Floats zip_high(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
VLLM_METAL_INLINE Floats zip_low(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
VLLM_METAL_INLINE Floats zip_high(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

// Transposes a square of kLanes registers: zipping row i with row i + kLanes / 2, as often as it
// takes to halve kLanes down to one.
VLLM_METAL_INLINE void transpose(Floats (&square)[kLanes]) {
#pragma GCC unroll 4
  for (int width = kLanes; width > 1; width /= 2) {
    Floats zipped[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip_low(square[i], square[i + kLanes / 2]);
      zipped[2 * i + 1] = zip_high(square[i], square[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i] = zipped[i];
  }
}

}  // namespace vllm_metal::cpu::VLLM_METAL_ISA
