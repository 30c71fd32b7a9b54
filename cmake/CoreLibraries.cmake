# SPDX-License-Identifier: Apache-2.0
# One static library a folder of src/, linked in the direction in which data
# flows, so that an include against the flow fails to link as well as to lint.

add_library(vllm_metal_options INTERFACE)
target_compile_features(vllm_metal_options INTERFACE cxx_std_20)
target_compile_options(vllm_metal_options INTERFACE
  -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -fno-math-errno -fno-trapping-math)
if(VLLM_METAL_SANITIZE)
  string(REPLACE ";" "," _sanitizers "${VLLM_METAL_SANITIZE}")
  target_compile_options(vllm_metal_options INTERFACE
    -fsanitize=${_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  target_link_options(vllm_metal_options INTERFACE -fsanitize=${_sanitizers})
endif()

# For the whole at once, as in `make setup` and `make check-macos`: twice as fast with clang. Not for
# the sources that do without MLX, where a missing include would no longer be seen.
option(VLLM_METAL_PRECOMPILE_HEADERS
  "Parse headers that most sources include, MLX's and GoogleTest's, once for all" OFF)

set(VLLM_METAL_LIBRARIES "")

# core_library(<folder> [MLX] [LINK <folder>...] [SOURCES <file>...])
# A folder of headers only becomes an interface library.
function(core_library folder)
  cmake_parse_arguments(ARG "MLX" "" "LINK;SOURCES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/${folder}/*.cpp")
  list(APPEND sources ${ARG_SOURCES})
  set(target vllm_metal_${folder})
  if(sources)
    add_library(${target} STATIC ${sources})
    set(scope PUBLIC)
    target_link_libraries(${target} PRIVATE "$<BUILD_INTERFACE:vllm_metal_options>")
    if(VLLM_METAL_PRECOMPILE_HEADERS AND ARG_MLX AND folder STREQUAL "common")
      target_precompile_headers(${target} PRIVATE "src/common/mlx.h")
    elseif(VLLM_METAL_PRECOMPILE_HEADERS AND ARG_MLX)
      target_precompile_headers(${target} REUSE_FROM vllm_metal_common)
    endif()
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(${target} ${scope}
    "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/src>" "$<INSTALL_INTERFACE:include>")
  foreach(dependency IN LISTS ARG_LINK)
    target_link_libraries(${target} ${scope} vllm_metal_${dependency})
  endforeach()
  if(ARG_MLX)
    target_link_libraries(${target} ${scope} mlx::mlx)
  endif()
  set_property(GLOBAL APPEND PROPERTY VLLM_METAL_LIBRARIES ${target})
endfunction()

include(SimdKernels)
include(GpuKernels)

core_library(common MLX)
core_library(files LINK common)  # formats of model files, without MLX so that sanitizers see all of it
core_library(config LINK files)
core_library(platform MLX LINK config)
core_library(interop MLX LINK platform)
core_library(weights MLX LINK interop)
core_library(kernels MLX LINK platform SOURCES ${VLLM_METAL_KERNEL_SOURCES})
core_library(cache MLX LINK kernels)

core_library(attention LINK cache)
core_library(layers MLX LINK attention weights)
core_library(models MLX LINK layers)
core_library(sampling LINK config)
core_library(runner MLX LINK models sampling)
core_library(selftest MLX LINK kernels)

set_source_files_properties(src/common/version.cpp PROPERTIES
  COMPILE_DEFINITIONS "VLLM_METAL_VERSION=\"${VLLM_METAL_VERSION}\"")
target_include_directories(vllm_metal_kernels SYSTEM PRIVATE ${VLLM_METAL_GPU_INCLUDES})
target_link_libraries(vllm_metal_kernels PRIVATE ${VLLM_METAL_GPU_LIBRARIES})
find_package(Threads REQUIRED)
target_link_libraries(vllm_metal_kernels PUBLIC Threads::Threads)

# Everything, for users and tests.
add_library(vllm_metal INTERFACE)
target_link_libraries(vllm_metal INTERFACE vllm_metal_runner)
