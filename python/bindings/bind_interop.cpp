// SPDX-License-Identifier: Apache-2.0
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <utility>

#include "bindings.h"
#include "common/text.h"
#include "tensors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

using AnyTensor = nb::ndarray<nb::ro>;
using Exported = nb::ndarray<nb::ro, nb::array_api>;

nb::object to_mlx_object(nb::handle object) {
  const TensorView view = view_of(object);
  auto array = [&] {
    nb::gil_scoped_release release;
    return to_mlx(view);
  }();
  return to_python(array);
}

}  // namespace

nb::object to_python(const mx::array& array) {
  TensorView view = view_of(array);
  const auto [code, bits, lanes] = dlpack_dtype(view.dtype);
  using Owner = std::shared_ptr<const void>;
  const nb::capsule owner(new Owner(std::move(view.owner)),
                          [](void* kept) noexcept { delete static_cast<Owner*>(kept); });
  const std::vector<size_t> shape(view.shape.begin(), view.shape.end());
  return nb::cast(Exported(view.data, shape.size(), shape.data(), owner, view.strides.data(),
                           {code, bits, lanes}, kDlpackCpu));
}

TensorView view_of(nb::handle object) {
  AnyTensor tensor;
  if (!nb::try_cast(object, tensor, false))
    throw std::invalid_argument(text("[interop] expected a tensor that speaks DLPack but got ",
                                     nb::type_name(object.type()).c_str(), "."));
  if (tensor.device_type() != kDlpackCpu)
    throw std::invalid_argument(text("[interop] device must be DLPack's number ", kDlpackCpu,
                                     ", the CPU, but is ", tensor.device_type(), "."));
  const auto [code, bits, lanes] = tensor.dtype();
  auto owner = std::make_shared<const AnyTensor>(tensor);
  return {.data = static_cast<std::byte*>(tensor.data_handle()) + tensor.byte_offset(),
          .dtype = mlx_dtype({code, bits, lanes}),
          .shape = {tensor.shape_ptr(), tensor.shape_ptr() + tensor.ndim()},
          .strides = {tensor.stride_ptr(), tensor.stride_ptr() + tensor.ndim()},
          .owner = std::move(owner)};
}

std::vector<NamedTensor> read_pickle(const nb::callable& reader,
                                     const std::filesystem::path& path) {
  nb::gil_scoped_acquire gil;
  std::vector<NamedTensor> tensors;
  for (const auto& [key, value] : nb::cast<nb::dict>(reader(path.string()))) {
    auto name = nb::cast<std::string>(key);
    try {
      tensors.push_back({name, view_of(value)});
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(
          text("[weights] tensor ", name, " in ", path.string(), ": ", error.what()));
    }
  }
  return tensors;
}

void bind_interop(nb::module_& module) {
  module.def("to_mlx", &to_mlx_object, "tensor"_a,
             "Hand a tensor to MLX: any object in host memory that speaks DLPack. MLX adopts the "
             "memory where it can (Metal, contiguous, whole pages) and else copies it once. "
             "Returns what MLX holds, which speaks DLPack, read-only. ValueError names a dtype or "
             "device that is not supported.");
}

}  // namespace vllm_metal
