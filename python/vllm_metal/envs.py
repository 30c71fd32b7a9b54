# SPDX-License-Identifier: Apache-2.0
"""Our environment variables. The core reads and checks them; this module asks the core."""

import os
from functools import partial

NAMES = (
    "VLLM_METAL_MEMORY_FRACTION",
    "VLLM_METAL_USE_MLX",
    "VLLM_MLX_DEVICE",
    "VLLM_METAL_BLOCK_SIZE",
    "VLLM_METAL_USE_PAGED_ATTENTION",
    "VLLM_METAL_DEBUG",
    "VLLM_USE_MODELSCOPE",
    "VLLM_METAL_MODELSCOPE_CACHE",
    "VLLM_METAL_PREFIX_CACHE",
    "VLLM_METAL_PREFIX_CACHE_FRACTION",
)

_FALSE = ("0", "false", "no", "off")
_TRUE = ("1", "true", "yes", "on")


def wants_mlx() -> bool:
    """Whether VLLM_METAL_USE_MLX leaves the plugin on. Does not load the core.

    A value that is neither true nor false leaves it on, so that `check` refuses it by name.
    """
    return os.environ.get("VLLM_METAL_USE_MLX", "1").lower() not in _FALSE


def uses_modelscope() -> bool:
    """Whether VLLM_USE_MODELSCOPE has models come from ModelScope. Does not load the core.

    vLLM reads it too, and only `1` and `true` are true for it.
    """
    return os.environ.get("VLLM_USE_MODELSCOPE", "").strip().lower() in ("1", "true")


def modelscope_cache() -> str | None:
    """VLLM_METAL_MODELSCOPE_CACHE, a model's folder or a cache directory; None when unset."""
    path = _state()["VLLM_METAL_MODELSCOPE_CACHE"]["value"]
    return os.path.expanduser(path) if path else None  # noqa: PTH111  stays text


def register_with_vllm() -> None:
    """Add our names to vLLM's table; it warns of `VLLM_*` variables that it does not know."""
    import vllm.envs

    for name in NAMES:
        vllm.envs.environment_variables.setdefault(name, partial(os.environ.get, name))


def table() -> list[dict]:
    """All variables in the order of the documentation: name, value, default, meaning, is_set.

    ValueError names one with a bad value, that value and what is allowed.
    """
    from vllm_metal import _core

    return _core.environment()


def check() -> None:
    """Check all variables; raises as `table` does."""
    table()


def block_size() -> int:
    """Tokens in a KV cache block: VLLM_METAL_BLOCK_SIZE or its default."""
    return int(_state()["VLLM_METAL_BLOCK_SIZE"]["value"])


def block_size_is_set() -> bool:
    """Whether VLLM_METAL_BLOCK_SIZE was given."""
    return bool(_state()["VLLM_METAL_BLOCK_SIZE"]["is_set"])


def paged_attention() -> bool:
    """Whether VLLM_METAL_USE_PAGED_ATTENTION asks for vLLM's paged KV cache."""
    return _is_on("VLLM_METAL_USE_PAGED_ATTENTION")


def prefix_cache() -> bool | None:
    """VLLM_METAL_PREFIX_CACHE; None when unset."""
    name = "VLLM_METAL_PREFIX_CACHE"
    return _is_on(name) if _state()[name]["value"] else None


def debug() -> bool:
    """Whether VLLM_METAL_DEBUG asks for a log of each step."""
    return _is_on("VLLM_METAL_DEBUG")


def _is_on(name: str) -> bool:
    return _state()[name]["value"].lower() in _TRUE


def _state() -> dict[str, dict]:
    return {variable["name"]: variable for variable in table()}
