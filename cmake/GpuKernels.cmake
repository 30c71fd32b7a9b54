# SPDX-License-Identifier: Apache-2.0
# The device that our GPU kernels run on is the one that MLX was built for:
# src/kernels/metal on a Mac, src/kernels/cuda with MLX's wheel for CUDA, else
# src/kernels/no_gpu. All devices share src/kernels/gpu, whose kernel sources
# become strings of the program: they are compiled at run time.
# Sets VLLM_METAL_GPU, and _INCLUDES and _LIBRARIES that the device needs.

file(GLOB _gpu_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/kernels/gpu/*.cpp")
list(APPEND VLLM_METAL_KERNEL_SOURCES ${_gpu_sources})

if(APPLE)
  set(VLLM_METAL_GPU metal)
  set(VLLM_METAL_GPU_INCLUDES "${MLX_ROOT}/include/metal_cpp")
else()
  file(STRINGS "${MLX_LIBRARY}" _cuda_symbols LIMIT_COUNT 1 REGEX "_ZN3mlx4core2cu14CommandEncoder")
  if(_cuda_symbols)
    set(VLLM_METAL_GPU cuda)
    find_package(CUDAToolkit REQUIRED)
    set(VLLM_METAL_GPU_LIBRARIES CUDA::cuda_driver CUDA::nvrtc ${CMAKE_DL_LIBS})
    set(VLLM_METAL_GPU_INCLUDES ${CUDAToolkit_INCLUDE_DIRS} "${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda")
  else()
    set(VLLM_METAL_GPU no_gpu)
  endif()
endif()
message(STATUS "GPU kernels: ${VLLM_METAL_GPU}")
file(GLOB _device_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/kernels/${VLLM_METAL_GPU}/*.cpp")
list(APPEND VLLM_METAL_KERNEL_SOURCES ${_device_sources})

set(_embedded "${CMAKE_CURRENT_BINARY_DIR}/generated/embedded_kernels.cpp")
set(_kernel_folder "${CMAKE_CURRENT_SOURCE_DIR}/src/kernels/gpu")
file(GLOB _kernel_files CONFIGURE_DEPENDS "${_kernel_folder}/*.metal" "${_kernel_folder}/prelude_*.h")
add_custom_command(OUTPUT "${_embedded}"
  COMMAND "${CMAKE_COMMAND}" "-DFOLDER=${_kernel_folder}" "-DOUTPUT=${_embedded}"
          -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/EmbedKernels.cmake"
  DEPENDS ${_kernel_files} "${_kernel_folder}/sources.txt" "${_kernel_folder}/kernel_arguments.h"
          "${CMAKE_CURRENT_SOURCE_DIR}/cmake/EmbedKernels.cmake"
  COMMENT "Embedding the sources of the GPU kernels" VERBATIM)
list(APPEND VLLM_METAL_KERNEL_SOURCES "${_embedded}")
