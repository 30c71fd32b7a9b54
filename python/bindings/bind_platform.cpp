// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "common/log.h"
#include "config/env.h"
#include "platform/device.h"
#include "platform/memory.h"
#include "platform/memory_plan.h"

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
  result["working_set"] = info.working_set;
  return result;
}

MemoryPlan plan_memory_of(uint64_t total, uint64_t available, uint64_t working_set, uint64_t model,
                          uint64_t activations, uint64_t block_bytes, int block_size,
                          int64_t max_model_len, bool shortens, std::optional<uint64_t> num_blocks,
                          std::optional<uint64_t> kv_cache_bytes, std::optional<double> utilization,
                          bool prefix_cache) {
  std::optional<double> prefix_cache_fraction;
  if (prefix_cache) prefix_cache_fraction = environment().prefix_cache_fraction;
  return plan_memory({total, available, working_set, model, activations},
                     {block_bytes, block_size, max_model_len, shortens},
                     {.num_blocks = num_blocks,
                      .kv_cache_bytes = kv_cache_bytes,
                      .fraction = environment().memory_fraction,
                      .utilization = utilization,
                      .paged = environment().paged_attention,
                      .prefix_cache = prefix_cache_fraction});
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
      "Pick MLX's device by VLLM_MLX_DEVICE and describe it: type, backend, name, and in bytes "
      "total_memory, available_memory and working_set, what it recommends to use at most. "
      "RuntimeError when gpu is asked for and there is none.");
  nb::class_<MemoryPlan>(module, "MemoryPlan",
                         "How memory is divided between model, activations and KV cache, in bytes.")
      .def_ro("basis", &MemoryPlan::basis, "The option or variable that decided.")
      .def_ro("kv_cache", &MemoryPlan::kv_cache)
      .def_ro("prefix_cache", &MemoryPlan::prefix_cache)
      .def_ro("margin", &MemoryPlan::margin)
      .def_ro("memory_limit", &MemoryPlan::memory_limit, "Of all of it.")
      .def_ro("cache_limit", &MemoryPlan::cache_limit, "Of what MLX keeps for reuse.")
      .def_ro("wired_limit", &MemoryPlan::wired_limit, "Of what stays resident on Metal.")
      .def("table", &MemoryPlan::table, "Some lines for the log.");
  module.def("plan_memory", &plan_memory_of, nb::kw_only(), "total"_a, "available"_a,
             "working_set"_a, "model"_a, "activations"_a, "block_bytes"_a, "block_size"_a,
             "max_model_len"_a, "shortens"_a = false, "num_blocks"_a = nb::none(),
             "kv_cache_bytes"_a = nb::none(), "utilization"_a = nb::none(),
             "prefix_cache"_a = false,
             "Divide memory by what is asked for, the first that is given: num_blocks, "
             "kv_cache_bytes, VLLM_METAL_MEMORY_FRACTION, utilization; else as little as one "
             "sequence needs, which may be cut if it `shortens`. A prefix_cache gets "
             "VLLM_METAL_PREFIX_CACHE_FRACTION of the working set. ValueError names a wish that "
             "cannot be, RuntimeError all figures where the memory does not suffice.");
  module.def(
      "capture_metal",
      [](const std::optional<std::string>& path) {
        if (path) {
          mx::metal::start_capture(*path);
        } else {
          mx::metal::stop_capture();
        }
      },
      "path"_a.none(), "Record the GPU's work into a .gputrace, or with None stop. Metal only.");
  module.def(
      "memory_pressure",
      [] {
        switch (memory_pressure()) {
          case MemoryPressure::kNormal:
            return "normal";
          case MemoryPressure::kWarning:
            return "warning";
          default:
            return "critical";
        }
      },
      "How short of memory the system is: \"normal\", \"warning\" or \"critical\".");
  module.def("return_unused_memory", &return_unused_memory,
             "Give back to the system what is kept for reuse.");
  module.def("apply_memory_limits", &apply_memory_limits, "plan"_a, "Set MLX's limits.");
  module.def("release_memory_limits", &release_memory_limits,
             "Set MLX's limits back, with nothing wired and nothing kept for reuse.");
}

}  // namespace vllm_metal
