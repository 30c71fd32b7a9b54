// SPDX-License-Identifier: Apache-2.0
// For builds whose MLX has no GPU. Nothing but kernels_available is reached.
#include "kernels/gpu/device.h"

#include <stdexcept>

namespace vllm_metal::gpu {

namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error("[gpu] this build has no kernels for a GPU.");
}

}  // namespace

bool kernels_available() { return false; }
KernelTarget kernel_target() { refuse(); }
mx::array lookup_array(const std::vector<int32_t>&, const mx::Shape&) { refuse(); }
void compile(const KernelName&, int) { refuse(); }
void allocate(mx::array&, const mx::Stream&) { refuse(); }
void launch(const KernelLaunch&, const mx::Stream&) { refuse(); }
void hold(const mx::array&, const mx::Stream&) { refuse(); }
void watch(const mx::Stream&) { refuse(); }

}  // namespace vllm_metal::gpu
