# SPDX-License-Identifier: Apache-2.0
# src/kernels/cpu/simd/*.simd.cpp is compiled once for each instruction set,
# with VLLM_METAL_ISA naming it; the set is chosen at run time (cpu/isa.h).
# These files may include only C headers and what is written for them: an inline
# function of a shared header compiled with AVX-512 could replace the copy that
# the rest of the program runs on a machine without it.

file(GLOB _simd_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/kernels/cpu/simd/*.simd.cpp")
file(GLOB VLLM_METAL_KERNEL_SOURCES CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/kernels/cpu/*.cpp")

string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" _processor)
if(_processor MATCHES "x86_64|amd64")
  set(_isas baseline avx2 avx512 avx512_bf16)
  set(_flags_baseline "")
  set(_flags_avx2 -mavx2 -mfma -mf16c)
  set(_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512)
  set(_flags_avx512_bf16 ${_flags_avx512} -mavx512bf16)
else()
  set(_isas baseline)  # NEON is part of the arm64 baseline
  set(_flags_baseline "")
endif()

string(REPLACE ";" "," _simd_sanitizers "${VLLM_METAL_SANITIZE}")
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # With all of UBSan's checks in every inlined lane, g++ needs a quarter of an hour a file.
  string(REPLACE "undefined" "alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"
    _simd_sanitizers "${_simd_sanitizers}")
endif()

foreach(_isa IN LISTS _isas)
  if(_simd_sources)
    add_library(vllm_metal_simd_${_isa} OBJECT ${_simd_sources})
    target_include_directories(vllm_metal_simd_${_isa} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/src")
    target_compile_definitions(vllm_metal_simd_${_isa} PRIVATE VLLM_METAL_ISA=${_isa})
    target_compile_options(vllm_metal_simd_${_isa} PRIVATE -O3 -fno-trapping-math -ffp-contract=fast -Wno-psabi ${_flags_${_isa}})
    # Not vllm_metal_options: see below for sanitizers.
    target_compile_features(vllm_metal_simd_${_isa} PRIVATE cxx_std_20)
    target_compile_options(vllm_metal_simd_${_isa} PRIVATE -Wall -Wextra -Wno-unused-parameter -fno-math-errno)
    if(_simd_sanitizers)
      target_compile_options(vllm_metal_simd_${_isa} PRIVATE
        -fsanitize=${_simd_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
    endif()
    list(APPEND VLLM_METAL_KERNEL_SOURCES "$<TARGET_OBJECTS:vllm_metal_simd_${_isa}>")
  endif()
endforeach()
