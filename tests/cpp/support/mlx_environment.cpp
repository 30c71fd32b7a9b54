// SPDX-License-Identifier: Apache-2.0
// Part of every test program that uses MLX. Tests run on the CPU where they do not say otherwise,
// whatever other devices MLX knows. On CUDA float32 is computed as such, not as TF32. At a
// program's end nothing is under way: MLX destroys its allocator then, and does not wait for its
// own threads, which would go on to use it.
#include <gtest/gtest.h>

#include <cstdlib>

#include "common/mlx.h"

namespace {

class MLXEnvironment : public testing::Environment {
 public:
  void SetUp() override {
    setenv("MLX_ENABLE_TF32", "0", 0);  // read by MLX at its first product
    mlx::core::set_default_device(mlx::core::Device::cpu);
  }
  void TearDown() override { mlx::core::synchronize(); }
};

[[maybe_unused]] const auto* const environment =
    testing::AddGlobalTestEnvironment(new MLXEnvironment);  // which GoogleTest deletes

}  // namespace
