// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vllm_metal {

// Element types that safetensors files hold and we read.
enum class StoredDtype {
  kBool,
  kU8,
  kI8,
  kU16,
  kI16,
  kF16,
  kBF16,
  kU32,
  kI32,
  kF32,
  kU64,
  kI64,
  kF64
};

// Bytes of one element.
size_t size_of(StoredDtype dtype);
// The spelling of the safetensors format: "F16", "BF16", "U32", ...
const char* name_of(StoredDtype dtype);

// Bytes of a tensor. Throws std::invalid_argument when an extent is negative or the size exceeds
// 63 bits, even where another extent is zero.
uint64_t checked_nbytes(const std::vector<int64_t>& shape, StoredDtype dtype);

// Where a tensor lies in a file: checked against the file's size, so that reading
// [offset, offset + nbytes) is always inside it.
struct TensorInfo {
  std::string name;
  StoredDtype dtype = StoredDtype::kF32;
  std::vector<int64_t> shape;  // row-major; product * size_of(dtype) == nbytes
  uint64_t offset = 0;         // from the start of the file, bytes
  uint64_t nbytes = 0;
};

}  // namespace vllm_metal
