# SPDX-License-Identifier: Apache-2.0
"""The plan itself is tested in tests/cpp/platform/memory_plan_test.cpp."""

import pytest
from vllm_metal.memory import CacheSize, format_bytes, start_line

GIB = 1 << 30


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 KiB"), (3 << 10, "3 KiB"), (90 << 20, "90.00 MiB"), (5 * GIB // 2, "2.50 GiB")],
)
def test_bytes_are_readable(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_start_line():
    device_info = {
        "name": "Apple M3",
        "backend": "metal",
        "total_memory": 16 * GIB,
        "available_memory": 10 * GIB,
    }
    sizes = {"weight_bytes": 90 << 20, "kv_cache": CacheSize(2 * GIB, 93200)}
    line = start_line(device_info, **sizes)
    assert line == (
        "Device Apple M3 (metal), memory 16.00 GiB in total, 10.00 GiB available; model 90.00 MiB; "
        "KV cache up to 2.00 GiB, 93,200 tokens."
    )
    line = start_line(device_info, **sizes, prefix_cache=CacheSize(GIB // 2, 23296))
    assert line.endswith(
        "KV cache up to 2.00 GiB, 93,200 tokens; prefix cache up to 512.00 MiB, 23,296 tokens."
    )
