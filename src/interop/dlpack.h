// SPDX-License-Identifier: Apache-2.0
// Tensors in the words of DLPack, the C ABI in which torch and numpy pass memory on
// (https://dmlc.github.io/dlpack/latest/c_api.html), without the part that is Python's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal {

// DLDataType.
struct DlpackDtype {
  uint8_t code;    // DLDataTypeCode
  uint8_t bits;    // of one element
  uint16_t lanes;  // 1 but for vector types
  bool operator==(const DlpackDtype&) const = default;
};

constexpr int32_t kDlpackCpu = 1;  // DLDeviceType kDLCPU

DlpackDtype dlpack_dtype(mx::Dtype dtype);
// Throws std::invalid_argument for what MLX does not have, complex128 and float8_e4m3fn say.
mx::Dtype mlx_dtype(DlpackDtype dtype);
// As numpy and torch spell it: "float16", "bool".
std::string name_of(mx::Dtype dtype);

// Memory that others may hold too, so nobody writes through it. DLTensor with an owner in place
// of its deleter: the memory stays where it is for as long as the owner is held.
struct TensorView {
  void* data = nullptr;
  mx::Dtype dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements, of any sign; as many as extents
  std::shared_ptr<const void> owner;

  size_t size() const;  // elements
  size_t nbytes() const { return size() * mx::size_of(dtype); }
  bool is_row_contiguous() const;
};

// The memory of an evaluated array; no copy. The host reads it on every device: Metal's memory is
// the host's, and MLX moves CUDA's there. Throws std::invalid_argument when the array is still to
// be computed, since that is for the runner to do.
TensorView view_of(const mx::array& array);

// Writes the elements in row-major order to `destination`, which has room for nbytes().
void copy_row_major(const TensorView& view, std::byte* destination);

// An array of the same values. It adopts the memory where the device's allocator can, which is
// Metal's for contiguous tensors of whole pages: changing those afterwards changes the array.
// Everything else is copied once. Throws std::invalid_argument for extents beyond 2^31 - 1.
mx::array to_mlx(const TensorView& view);

}  // namespace vllm_metal
