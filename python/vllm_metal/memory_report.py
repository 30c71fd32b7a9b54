# SPDX-License-Identifier: Apache-2.0
"""How much memory the KV cache may take, and the line that reports it at start-up."""

from dataclasses import dataclass

GIB = 1 << 30

# Activations, the runtime and what MLX keeps for reuse.
RESERVE_BYTES = GIB


def format_bytes(num_bytes: int) -> str:
    """Write `num_bytes` in the unit that people compare with."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes / (1 << 10):.0f} KiB"


@dataclass(frozen=True)
class MemoryReport:
    """Memory of the device, in bytes, as found before the model was loaded."""

    device_name: str
    backend: str  # "metal", "cuda" or "cpu"
    total: int
    available: int

    @classmethod
    def of_device(cls, device_info: dict) -> "MemoryReport":
        """Take the figures of the core's `device_info()`."""
        return cls(
            device_name=device_info["name"],
            backend=device_info["backend"],
            total=device_info["total_memory"],
            available=device_info["available_memory"],
        )

    def kv_cache_bytes(
        self, *, weight_bytes: int, memory_utilization: float, requested_bytes: int | None
    ) -> int:
        """Return bytes for the KV cache: `requested_bytes`, else what the model leaves.

        Raises:
            ValueError: nothing is left, or the request is not positive.
        """
        if requested_bytes is not None:
            if requested_bytes <= 0:
                raise ValueError(
                    f"--kv-cache-memory-bytes must be positive but is {requested_bytes}."
                )
            return requested_bytes
        usable = min(int(memory_utilization * self.total), self.available)
        budget = usable - weight_bytes - RESERVE_BYTES
        if budget <= 0:
            raise ValueError(
                f"No memory is left for the KV cache: of {format_bytes(usable)}, which is the "
                f"smaller of {memory_utilization:g} (--gpu-memory-utilization) times "
                f"{format_bytes(self.total)} in total and {format_bytes(self.available)} "
                f"available, the model takes {format_bytes(weight_bytes)} and "
                f"{format_bytes(RESERVE_BYTES)} is kept in reserve. Close other programs, serve a "
                "smaller or quantised model, raise --gpu-memory-utilization, or set "
                "--kv-cache-memory-bytes."
            )
        return budget

    def line(self, *, weight_bytes: int, kv_cache_bytes: int, kv_cache_tokens: int) -> str:
        """Describe device, model and KV cache in one line."""
        total, available = format_bytes(self.total), format_bytes(self.available)
        return (
            f"Device {self.device_name} ({self.backend}), memory {total} in total, {available} "
            f"available; model {format_bytes(weight_bytes)}; KV cache up to "
            f"{format_bytes(kv_cache_bytes)}, {kv_cache_tokens:,} tokens."
        )
