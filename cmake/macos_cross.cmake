# SPDX-License-Identifier: Apache-2.0
# Toolchain file: builds for macOS 14 on arm64 from another system, with what
# scripts/check_macos.py puts into the folder that VLLM_METAL_MACOS_TOOLS names.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
# No SDK: the compiler brings the headers, and its own options say which macOS.
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_OSX_ARCHITECTURES "")
set(CMAKE_OSX_DEPLOYMENT_TARGET "")

set(_tools "$ENV{VLLM_METAL_MACOS_TOOLS}")
if(NOT EXISTS "${_tools}/bin/c++")
  message(FATAL_ERROR "VLLM_METAL_MACOS_TOOLS='${_tools}' has no bin/c++. `make check-macos` makes that folder and sets the variable.")
endif()
set(CMAKE_CXX_COMPILER "${_tools}/bin/c++")
set(CMAKE_AR "${_tools}/bin/ar" CACHE FILEPATH "")
set(CMAKE_RANLIB "${_tools}/bin/ranlib" CACHE FILEPATH "")
set(CMAKE_INSTALL_NAME_TOOL "false" CACHE FILEPATH "")  # nothing may be changed after linking
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

# Libraries of this system are not for that one; its programs are.
set(CMAKE_FIND_ROOT_PATH "${_tools}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
