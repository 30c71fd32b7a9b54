// SPDX-License-Identifier: Apache-2.0
// Part of every test program that uses MLX: at its end nothing is under way. MLX destroys its
// allocator then, and does not wait for its own threads, which would go on to use it.
#include <gtest/gtest.h>

#include "common/mlx.h"

namespace {

class WaitForMLX : public testing::Environment {
 public:
  void TearDown() override { mlx::core::synchronize(); }
};

[[maybe_unused]] const auto* const environment =
    testing::AddGlobalTestEnvironment(new WaitForMLX);  // which GoogleTest deletes

}  // namespace
