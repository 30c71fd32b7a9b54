// SPDX-License-Identifier: Apache-2.0
// The one way this project includes MLX, and its alias.
#pragma once

#include <mlx/mlx.h>

namespace mx = mlx::core;
