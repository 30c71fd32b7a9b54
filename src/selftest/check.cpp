// SPDX-License-Identifier: Apache-2.0
#include "selftest/check.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "kernels/device_kernels.h"
#include "selftest/numbers.h"

namespace vllm_metal::selftest {

namespace {

// Puts back what a check changed.
class Settings {
 public:
  Settings() = default;
  Settings(const Settings&) = delete;
  Settings& operator=(const Settings&) = delete;
  ~Settings() {
    set_device_kernels_enabled(kernels_);
    mx::set_default_device(device_);
  }

 private:
  mx::Device device_ = mx::default_device();
  bool kernels_ = device_kernels_enabled();
};

Result result_of(const Check& check) {
  const Settings settings;
  try {
    const Finding found = check.run();
    const bool passed = found.worst_error <= found.tolerance;  // false for NaN
    return {passed ? Outcome::kPassed : Outcome::kFailed, found.worst_error, found.tolerance, 0,
            found.detail};
  } catch (const Skipped& reason) {
    return {Outcome::kSkipped, std::nullopt, std::nullopt, 0, reason.what()};
  } catch (const std::exception& error) {
    return {Outcome::kFailed, std::nullopt, std::nullopt, 0, error.what()};
  }
}

double error_of(double actual, double expected) {
  if (actual == expected) return 0;
  const double error = std::abs(actual - expected) / (1 + std::abs(expected));
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

}  // namespace

std::optional<std::string> why_without_gpu(const std::optional<std::string>& users_reason) {
  if (users_reason || mx::is_available(mx::Device::gpu)) return users_reason;
  return "no GPU";
}

Check skipped(const std::string& name, const std::string& reason) {
  return {name, [reason]() -> Finding { throw Skipped(reason); }};
}

Result run_check(const Check& check) {
  const auto start = std::chrono::steady_clock::now();
  Result result = result_of(check);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

double worst_error(const std::vector<mx::array>& actual, const std::vector<mx::array>& expected) {
  double worst = 0;
  if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i].shape() != expected[i].shape()) return std::numeric_limits<double>::infinity();
    const auto a = values_of(actual[i]), e = values_of(expected[i]);
    for (size_t j = 0; j < a.size(); ++j) worst = std::max(worst, error_of(a[j], e[j]));
  }
  return worst;
}

}  // namespace vllm_metal::selftest
