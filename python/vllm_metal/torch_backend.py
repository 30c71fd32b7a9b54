# SPDX-License-Identifier: Apache-2.0
"""Says what to do when VLLM_METAL_USE_MLX=0 hands over to a vLLM that cannot compute.

vLLM's pure-Python build, which is all that MLX needs, has no kernels. Left alone it says that it
cannot infer a device, or fails in the engine's process when the first operation is missing.
"""

import os
import pkgutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_metal import envs

if TYPE_CHECKING:
    from vllm.platforms import Platform


def refuse_without_kernels() -> None:
    """Stop vLLM with what to do when the plugin stepped aside and nothing computes.

    Without a platform vLLM fails next, while it builds its command line's parser. With one it is
    stopped when it configures an engine: `vllm bench serve` and others need none, and general
    plugins run for them too.
    """
    import vllm
    from vllm.platforms import current_platform

    if envs.wants_mlx() or has_kernels(current_platform, vllm.__path__):
        return
    if current_platform.is_unspecified():
        raise _refusal()
    from vllm.engine.arg_utils import EngineArgs

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise _refusal()

    EngineArgs.create_engine_config = refuse


def _refusal() -> RuntimeError:
    import vllm

    value = os.environ["VLLM_METAL_USE_MLX"]
    return RuntimeError(
        f"VLLM_METAL_USE_MLX={value} leaves the computing to vLLM's PyTorch back end, but this "
        f"build of vLLM ({vllm.__version__}) has no kernels for this machine. Either run "
        f"`make serve VLLM_METAL_USE_MLX={value}`, which on Linux installs a build with CPU "
        "kernels in an environment of its own, or install such a build here, as `install.sh "
        "--torch-backend` does, or unset VLLM_METAL_USE_MLX to compute with MLX."
    )


def has_kernels(platform: "Platform", package_path: Iterable[str]) -> bool:
    """Whether vLLM, whose package lies in `package_path`, can compute on the platform it chose.

    Kernels for CPU, CUDA and ROCm are compiled modules of the package named _C, _C_AVX2 and the
    like; which of them fits the processor is vLLM's affair. Other platforms bring their own.
    """
    if platform.is_unspecified():
        return False
    if not (platform.is_cpu() or platform.is_cuda_alike()):
        return True
    return any(module.name.startswith("_C") for module in pkgutil.iter_modules(package_path))
