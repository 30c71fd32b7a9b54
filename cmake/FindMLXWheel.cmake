# SPDX-License-Identifier: Apache-2.0
# Defines the imported target mlx::mlx from the MLX wheel.
#
# MLX's own CMake package is not used: on macOS it names frameworks by the path
# of the Xcode that built the wheel, which other machines do not have.
#
# MLX_ROOT: folder that holds include/ and lib/ of MLX. Unset: the folder of the
# `mlx` package that the Python interpreter finds (Python is used for this only).

set(VLLM_METAL_MLX_VERSION "0.32.4")  # C++ API and ABI change between patch releases

if(NOT MLX_ROOT)
  find_package(Python 3.11 COMPONENTS Interpreter REQUIRED)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('mlx'); print(s and list(s.submodule_search_locations)[0] or '')"
    OUTPUT_VARIABLE MLX_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT MLX_ROOT)
    message(FATAL_ERROR "MLX was not found by ${Python_EXECUTABLE}. "
      "Install it (pip install 'mlx[cpu]==${VLLM_METAL_MLX_VERSION}' on Linux, "
      "'mlx==${VLLM_METAL_MLX_VERSION}' on a Mac) or set -DMLX_ROOT=<site-packages>/mlx.")
  endif()
endif()

find_library(MLX_LIBRARY mlx PATHS "${MLX_ROOT}/lib" NO_DEFAULT_PATH NO_CACHE)
if(NOT MLX_LIBRARY OR NOT EXISTS "${MLX_ROOT}/include/mlx/version.h")
  message(FATAL_ERROR "MLX_ROOT=${MLX_ROOT} lacks lib/libmlx or include/mlx/version.h. "
    "On Linux the library comes with the extra: pip install 'mlx[cpu]==${VLLM_METAL_MLX_VERSION}'.")
endif()

file(STRINGS "${MLX_ROOT}/include/mlx/version.h" _mlx_version_lines REGEX "#define MLX_VERSION_(MAJOR|MINOR|PATCH)")
string(REGEX REPLACE "[^0-9;]" "" _mlx_version_parts "${_mlx_version_lines}")
list(JOIN _mlx_version_parts "." _mlx_version)
if(NOT _mlx_version STREQUAL VLLM_METAL_MLX_VERSION)
  message(FATAL_ERROR "MLX ${_mlx_version} in ${MLX_ROOT}, but this release is built on MLX ${VLLM_METAL_MLX_VERSION} exactly.")
endif()
message(STATUS "MLX ${_mlx_version}: ${MLX_ROOT}")

add_library(mlx::mlx SHARED IMPORTED GLOBAL)
set_target_properties(mlx::mlx PROPERTIES
  IMPORTED_LOCATION "${MLX_LIBRARY}"
  INTERFACE_INCLUDE_DIRECTORIES "${MLX_ROOT}/include")
