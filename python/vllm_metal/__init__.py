# SPDX-License-Identifier: Apache-2.0
"""vLLM Metal: a vLLM platform plugin for Apple Silicon on a C++ core over MLX.

vLLM finds the two functions of this module through the entry points `vllm.platform_plugins` and
`vllm.general_plugins`. Importing the package imports neither vLLM nor torch nor MLX.
"""

from typing import Any


def register() -> str | None:
    """Name the platform class, or None when VLLM_METAL_USE_MLX=0 hands over to PyTorch.

    vLLM calls this twice in every process and hides what it raises, so it only reads one
    variable. An unusable installation is reported by the platform, where errors are seen.
    """
    from vllm_metal import envs

    return "vllm_metal.platform.MetalPlatform" if envs.wants_mlx() else None


def register_ops() -> None:
    """Make vLLM know our environment variables, and patch it for the platform that it chose."""
    from vllm_metal import compat, envs, torch_backend

    envs.register_with_vllm()
    compat.apply_patches()
    torch_backend.refuse_without_kernels()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vllm-metal")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
