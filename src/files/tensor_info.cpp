// SPDX-License-Identifier: Apache-2.0
#include "files/tensor_info.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

size_t size_of(StoredDtype dtype) {
  switch (dtype) {
    case StoredDtype::kBool:
    case StoredDtype::kU8:
    case StoredDtype::kI8:
      return 1;
    case StoredDtype::kU16:
    case StoredDtype::kI16:
    case StoredDtype::kF16:
    case StoredDtype::kBF16:
      return 2;
    case StoredDtype::kU32:
    case StoredDtype::kI32:
    case StoredDtype::kF32:
      return 4;
    case StoredDtype::kU64:
    case StoredDtype::kI64:
    case StoredDtype::kF64:
      return 8;
  }
  return 0;
}

const char* name_of(StoredDtype dtype) {
  switch (dtype) {
    case StoredDtype::kBool:
      return "BOOL";
    case StoredDtype::kU8:
      return "U8";
    case StoredDtype::kI8:
      return "I8";
    case StoredDtype::kU16:
      return "U16";
    case StoredDtype::kI16:
      return "I16";
    case StoredDtype::kF16:
      return "F16";
    case StoredDtype::kBF16:
      return "BF16";
    case StoredDtype::kU32:
      return "U32";
    case StoredDtype::kI32:
      return "I32";
    case StoredDtype::kF32:
      return "F32";
    case StoredDtype::kU64:
      return "U64";
    case StoredDtype::kI64:
      return "I64";
    case StoredDtype::kF64:
      return "F64";
  }
  return "?";
}

uint64_t checked_nbytes(const std::vector<int64_t>& shape, StoredDtype dtype) {
  uint64_t bytes = size_of(dtype);
  bool empty = false;
  for (int64_t extent : shape) {
    empty |= extent == 0;
    auto factor = static_cast<uint64_t>(std::max<int64_t>(extent, 1));
    if (extent < 0 || bytes > std::numeric_limits<int64_t>::max() / factor) {
      throw std::invalid_argument(text("shape [", join(shape), "] is out of range."));
    }
    bytes *= factor;
  }
  return empty ? 0 : bytes;
}

}  // namespace vllm_metal
