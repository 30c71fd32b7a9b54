# SPDX-License-Identifier: Apache-2.0
"""What the core needs to plan memory, from vLLM's configuration, and what is said of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import CacheConfig, VllmConfig

    from vllm_metal import _core


def format_bytes(num_bytes: int) -> str:
    """Write `num_bytes` in the unit that people compare with."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes / (1 << 10):.0f} KiB"


def plan_memory(
    device_info: dict[str, Any],
    vllm_config: "VllmConfig",
    *,
    weight_bytes: int,
    activation_bytes: int,
    block_bytes: int,
) -> "_core.MemoryPlan":
    """Have the core divide the device's memory, as found before the model was loaded.

    Raises ValueError naming an option that cannot be, RuntimeError with all figures when the
    memory does not suffice.
    """
    from vllm_metal import _core, prefix_cache_settings

    cache_config, model_config = vllm_config.cache_config, vllm_config.model_config
    return _core.plan_memory(
        total=device_info["total_memory"],
        available=device_info["available_memory"],
        working_set=device_info["working_set"],
        model=weight_bytes,
        activations=activation_bytes,
        block_bytes=block_bytes,
        block_size=cache_config.block_size,
        max_model_len=model_config.max_model_len,
        shortens=model_config.original_max_model_len == -1,
        num_blocks=cache_config.num_gpu_blocks_override,
        kv_cache_bytes=cache_config.kv_cache_memory_bytes,
        utilization=_given_utilization(cache_config),
        prefix_cache=prefix_cache_settings.is_on(vllm_config),
    )


@dataclass(frozen=True)
class CacheSize:
    """How much a cache of keys and values holds."""

    num_bytes: int
    num_tokens: int

    def __str__(self) -> str:
        return f"{format_bytes(self.num_bytes)}, {self.num_tokens:,} tokens"


def start_line(
    device_info: dict[str, Any],
    *,
    weight_bytes: int,
    kv_cache: CacheSize,
    prefix_cache: CacheSize | None = None,
) -> str:
    """Describe device, model, KV cache and prefix cache in one line."""
    total, available = (
        format_bytes(device_info[f"{key}_memory"]) for key in ("total", "available")
    )
    return (
        f"Device {device_info['name']} ({device_info['backend']}), memory {total} in total, "
        f"{available} available; model {format_bytes(weight_bytes)}; KV cache up to {kv_cache}"
        + ("." if prefix_cache is None else f"; prefix cache up to {prefix_cache}.")
    )


def _given_utilization(cache_config: "CacheConfig") -> float | None:
    """--gpu-memory-utilization; None for vLLM's default, which is one for memory of its own."""
    utilization = cache_config.gpu_memory_utilization
    return None if utilization == type(cache_config).gpu_memory_utilization else utilization
