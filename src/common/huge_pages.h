// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/mlx.h"

namespace vllm_metal {

// As `uninitialized`, in memory that the system is asked to back with huge pages (2 MB on x86-64).
// For what is large, lives long and is read by steps: a processor that streams it would otherwise
// look up a page for every 4 KB. Memory is still taken as it is written, but by the huge page.
mx::array uninitialized_in_huge_pages(const mx::Shape& shape, mx::Dtype dtype);

}  // namespace vllm_metal
