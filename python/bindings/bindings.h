// SPDX-License-Identifier: Apache-2.0
// One bind_<area>.cpp for each area of the core.
#pragma once

#include <nanobind/nanobind.h>

namespace vllm_metal {

void bind_platform(nanobind::module_& module);
void bind_files(nanobind::module_& module);
void bind_interop(nanobind::module_& module);
void bind_prefix_cache(nanobind::module_& module);
void bind_runner(nanobind::module_& module);
void bind_sampling(nanobind::module_& module);
void bind_selftest(nanobind::module_& module);

}  // namespace vllm_metal
