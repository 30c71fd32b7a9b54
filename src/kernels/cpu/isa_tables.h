// SPDX-License-Identifier: Apache-2.0
// A SIMD source defines one table of functions, `const Type name`, in the namespace of each
// instruction set that it is compiled for. These declare the tables and choose among them.
#pragma once

#if defined(__x86_64__)
#define VLLM_METAL_DECLARE_KERNELS(Type, name) \
  namespace baseline {                         \
  extern const Type name;                      \
  }                                            \
  namespace avx2 {                             \
  extern const Type name;                      \
  }                                            \
  namespace avx512 {                           \
  extern const Type name;                      \
  }                                            \
  namespace avx512_bf16 {                      \
  extern const Type name;                      \
  }
// Needs kernels/cpu/isa.h.
#define VLLM_METAL_KERNELS_OF(isa, name)         \
  ((isa) == Isa::kAvx512Bf16 ? avx512_bf16::name \
   : (isa) == Isa::kAvx512   ? avx512::name      \
   : (isa) == Isa::kAvx2     ? avx2::name        \
                             : baseline::name)
#else
#define VLLM_METAL_DECLARE_KERNELS(Type, name) \
  namespace baseline {                         \
  extern const Type name;                      \
  }
#define VLLM_METAL_KERNELS_OF(isa, name) (baseline::name)
#endif
