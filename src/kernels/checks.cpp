// SPDX-License-Identifier: Apache-2.0
#include "kernels/checks.h"

#include <stdexcept>

#include "common/text.h"

namespace vllm_metal {

void check_floating(const char* op, const char* name, const mx::array& x) {
  if (x.dtype() == mx::float32 || x.dtype() == mx::float16 || x.dtype() == mx::bfloat16) return;
  throw std::invalid_argument(
      text("[", op, "] ", name, " must be float32, float16 or bfloat16 but is ", x.dtype(), "."));
}

void check_same_dtype(const char* op, const char* name, const mx::array& x, const char* other_name,
                      const mx::array& other) {
  if (x.dtype() == other.dtype()) return;
  throw std::invalid_argument(text("[", op, "] ", name, " must have the dtype of ", other_name,
                                   ", ", other.dtype(), ", but is ", x.dtype(), "."));
}

void check_rank(const char* op, const char* name, const mx::array& x, int rank) {
  if (static_cast<int>(x.ndim()) == rank) return;
  throw std::invalid_argument(
      text("[", op, "] ", name, " must have ", rank, " dimensions but has shape ", x.shape(), "."));
}

void check_shape(const char* op, const char* name, const mx::array& x, const mx::Shape& shape) {
  if (x.shape() == shape) return;
  throw std::invalid_argument(
      text("[", op, "] ", name, " must have shape ", shape, " but has ", x.shape(), "."));
}

}  // namespace vllm_metal
