// SPDX-License-Identifier: Apache-2.0
// A check of the self-test (`vllm-metal selftest`): something that this machine should compute
// right, by name, and what came of it.
#pragma once

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/mlx.h"

namespace vllm_metal::selftest {

enum class Outcome { kPassed, kFailed, kSkipped };

// What a check measured. It passes when the error is no larger than the tolerance; NaN is larger.
struct Finding {
  double worst_error;
  double tolerance;
  std::string detail = {};
};

// Thrown by a check that this machine or this build cannot run, with the reason.
struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Check {
  std::string name;
  std::function<Finding()> run;
};

struct Result {
  Outcome outcome;
  std::optional<double> worst_error;
  std::optional<double> tolerance;
  double seconds;
  std::string detail;
};

// Why checks of the GPU are skipped: for the user's reason, if there is one, or since there is no
// GPU. Nothing: they are run.
std::optional<std::string> why_without_gpu(const std::optional<std::string>& users_reason);

Check skipped(const std::string& name, const std::string& reason);

// Runs a check, with MLX's default device and the choice of kernels put back afterwards. What it
// throws is a failure.
Result run_check(const Check& check);

// The largest |actual - expected| / (1 + |expected|) over all elements of all arrays; infinite
// where shapes differ or a value is NaN.
double worst_error(const std::vector<mx::array>& actual, const std::vector<mx::array>& expected);

}  // namespace vllm_metal::selftest
