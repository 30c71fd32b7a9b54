// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "common/log.h"
#include "config/env.h"
#include "platform/device.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

nb::list environment_list() {
  nb::list rows;
  for (const auto& variable : describe_environment()) {
    nb::dict row;
    row["name"] = variable.name;
    row["value"] = variable.value;
    row["default"] = variable.default_value;
    row["meaning"] = variable.meaning;
    row["is_set"] = variable.is_set;
    rows.append(row);
  }
  return rows;
}

nb::dict device_info() {
  const DeviceInfo info = describe_device(select_device(environment().device));
  nb::dict result;
  result["type"] = info.device == mx::Device::cpu ? "cpu" : "gpu";
  result["backend"] = info.backend;
  result["name"] = info.name;
  result["total_memory"] = info.total_memory;
  result["available_memory"] = info.available_memory;
  return result;
}

void set_python_log_sink(nb::object callback) {
  if (callback.is_none()) {
    set_log_sink({});
    return;
  }
  // The sink may outlive the interpreter; it must then neither call nor drop the reference.
  auto* function = new nb::object(std::move(callback));
  set_log_sink([function](LogLevel level, const std::string& message) {
    if (!nb::is_alive()) return;
    nb::gil_scoped_acquire gil;
    (*function)(static_cast<int>(level), message);
  });
}

}  // namespace

void bind_platform(nb::module_& module) {
  module.def("set_log_sink", &set_python_log_sink, "callback"_a.none(),
             "Hand messages of the core to callback(level, text); level 0 is debug, 1 info, 2 "
             "warning. None silences.");
  module.def("environment", &environment_list,
             "The environment variables: name, value, default, meaning, is_set. ValueError names a "
             "bad one.");
  module.def(
      "device_info", &device_info,
      "Pick MLX's device by VLLM_MLX_DEVICE and describe it: type, backend, name, total_memory and "
      "available_memory in bytes. RuntimeError when gpu is asked for and there is none.");
}

}  // namespace vllm_metal
