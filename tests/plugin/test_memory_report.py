# SPDX-License-Identifier: Apache-2.0
import pytest
from vllm_metal.memory_report import GIB, MemoryReport, format_bytes

REPORT = MemoryReport("Apple M3", "metal", total=16 * GIB, available=10 * GIB)


@pytest.mark.parametrize(
    ("memory_utilization", "expected"),
    [(0.5, 8 * GIB - 3 * GIB - GIB), (0.9, 10 * GIB - 3 * GIB - GIB)],
)
def test_the_smaller_of_share_and_available_less_model_and_reserve(memory_utilization, expected):
    budget = REPORT.kv_cache_bytes(
        weight_bytes=3 * GIB, memory_utilization=memory_utilization, requested_bytes=None
    )
    assert budget == expected


def test_a_request_overrides_the_share():
    budget = REPORT.kv_cache_bytes(
        weight_bytes=15 * GIB, memory_utilization=0.1, requested_bytes=123 << 20
    )
    assert budget == 123 << 20


@pytest.mark.parametrize("weight_bytes", [9 * GIB, 30 * GIB])
def test_nothing_left_names_the_figures(weight_bytes):
    with pytest.raises(ValueError, match="No memory is left") as error:
        REPORT.kv_cache_bytes(
            weight_bytes=weight_bytes, memory_utilization=0.9, requested_bytes=None
        )
    for part in ("0.9", "16.00 GiB", "10.00 GiB", format_bytes(weight_bytes), "1.00 GiB"):
        assert part in str(error.value)


def test_a_request_must_be_positive():
    with pytest.raises(ValueError, match="--kv-cache-memory-bytes must be positive but is 0"):
        REPORT.kv_cache_bytes(weight_bytes=0, memory_utilization=0.9, requested_bytes=0)


def test_line():
    line = REPORT.line(weight_bytes=90 << 20, kv_cache_bytes=2 * GIB, kv_cache_tokens=93200)
    assert line == (
        "Device Apple M3 (metal), memory 16.00 GiB in total, 10.00 GiB available; model 90.00 MiB; "
        "KV cache up to 2.00 GiB, 93,200 tokens."
    )
