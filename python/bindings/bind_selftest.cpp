// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings.h"
#include "common/text.h"
#include "kernels/device_kernels.h"
#include "selftest/kernel_checks.h"
#include "selftest/write_in_place.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

const char* name_of(selftest::Outcome outcome) {
  switch (outcome) {
    case selftest::Outcome::kPassed:
      return "passed";
    case selftest::Outcome::kFailed:
      return "failed";
    default:
      return "skipped";
  }
}

// Some checks of the core, by name.
class SelfTest {
 public:
  explicit SelfTest(std::vector<selftest::Check> checks) : checks_(std::move(checks)) {}

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& check : checks_) names.push_back(check.name);
    return names;
  }

  nb::dict run(const std::string& name) const {
    const selftest::Result result = [&] {
      nb::gil_scoped_release release;
      return selftest::run_check(find(name));
    }();
    nb::dict row;
    row["outcome"] = name_of(result.outcome);
    row["worst_error"] = result.worst_error;
    row["tolerance"] = result.tolerance;
    row["seconds"] = result.seconds;
    row["detail"] = result.detail;
    return row;
  }

 private:
  const selftest::Check& find(const std::string& name) const {
    for (const auto& check : checks_)
      if (check.name == name) return check;
    throw std::invalid_argument(
        text("[selftest] there is no check ", name, ", only ", join(names()), "."));
  }

  std::vector<selftest::Check> checks_;
};

// Without a reason the GPU is used if there is one.
SelfTest kernel_self_test(bool quick, const std::optional<std::string>& why_no_gpu) {
  return SelfTest(selftest::kernel_checks({.quick = quick, .why_no_gpu = why_no_gpu}));
}

SelfTest write_self_test(uint64_t max_bytes, const std::optional<std::string>& why_no_gpu) {
  return SelfTest(
      selftest::write_in_place_checks({.max_bytes = max_bytes, .why_no_gpu = why_no_gpu}));
}

}  // namespace

void bind_selftest(nb::module_& module) {
  nb::class_<SelfTest>(module, "SelfTest", "Checks of the core on this machine.")
      .def_prop_ro("names", &SelfTest::names)
      .def("run", &SelfTest::run, "name"_a,
           "Run a check: outcome (\"passed\", \"failed\" or \"skipped\"), worst_error and "
           "tolerance (None where nothing was compared), seconds, detail.");
  module.def("kernel_self_test", &kernel_self_test, "quick"_a, "why_no_gpu"_a.none() = nb::none(),
             "Every op on every device against its fallback on the CPU in float32. With "
             "why_no_gpu, checks of the GPU are skipped for that reason.");
  module.def("write_self_test", &write_self_test, "max_bytes"_a, "why_no_gpu"_a.none() = nb::none(),
             "Writes into KV caches of up to max_bytes take no memory.");
  module.def("set_device_kernels_enabled", &set_device_kernels_enabled, "enabled"_a,
             "False sends ops that are built from now on to their fallbacks in MLX's ops. Set it "
             "before a model is loaded.");
}

}  // namespace vllm_metal
