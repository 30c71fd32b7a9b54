// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/mlx.h"
#include "common/version.h"

NB_MODULE(_core, module) {
  module.doc() = "The C++ core of vLLM Metal. Only plain data, numpy and DLPack cross.";
  module.attr("__version__") = vllm_metal::version();
  module.attr("mlx_version") = mx::version();
  vllm_metal::bind_platform(module);
  vllm_metal::bind_files(module);
  vllm_metal::bind_interop(module);
  vllm_metal::bind_sampling(module);
  vllm_metal::bind_prefix_cache(module);
  vllm_metal::bind_runner(module);
  vllm_metal::bind_selftest(module);
}
