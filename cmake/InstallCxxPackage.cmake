# SPDX-License-Identifier: Apache-2.0
# find_package(vllm_metal) for C++ programs: static libraries, headers, config.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(_libraries GLOBAL PROPERTY VLLM_METAL_LIBRARIES)
install(TARGETS vllm_metal ${_libraries} EXPORT vllm_metal_targets
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT cxx)
install(DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/src/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT cxx
  FILES_MATCHING PATTERN "*.h")
install(EXPORT vllm_metal_targets NAMESPACE vllm_metal:: FILE vllm_metalTargets.cmake
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/vllm_metal" COMPONENT cxx)
configure_package_config_file("${CMAKE_CURRENT_SOURCE_DIR}/cmake/vllm_metalConfig.cmake.in"
  "${CMAKE_CURRENT_BINARY_DIR}/vllm_metalConfig.cmake" INSTALL_DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/vllm_metal")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/vllm_metalConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/vllm_metalConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/vllm_metalConfigVersion.cmake"
  "${CMAKE_CURRENT_SOURCE_DIR}/cmake/FindMLXWheel.cmake"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/vllm_metal" COMPONENT cxx)
