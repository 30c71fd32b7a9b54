// SPDX-License-Identifier: Apache-2.0
// Tensors that cross between the core and torch or numpy, through DLPack and without a copy.
#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <vector>

#include "interop/dlpack.h"
#include "weights/weight_store.h"

namespace vllm_metal {

// The memory of an evaluated array as an object that speaks DLPack, read-only.
nanobind::object to_python(const mx::array& array);

// The memory of any object in host memory that speaks DLPack or the buffer protocol. The owner may
// be dropped by any thread, with or without the GIL. Throws std::invalid_argument for others, and
// for a dtype that MLX does not have.
TensorView view_of(nanobind::handle object);

// Python's `dict[str, tensor] = reader(path)` as loading calls it: without the GIL.
std::vector<NamedTensor> read_pickle(const nanobind::callable& reader,
                                     const std::filesystem::path& path);

}  // namespace vllm_metal
