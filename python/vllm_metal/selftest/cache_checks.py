# SPDX-License-Identifier: Apache-2.0
"""The in-place write as the KV cache grows: what it takes must stay the same."""

from vllm_metal.selftest.checks import Check, Options
from vllm_metal.selftest.kernels_checks import core_checks

_QUICK_BYTES = 64 << 20
_MOST_BYTES = 16 << 30  # more than 2³¹ numbers in keys and values each, where there is memory


def checks(options: Options) -> list[Check]:
    """Return a check for each size of the pool, up to the limit or a quarter of what is free."""
    from vllm_metal import _core

    free = _core.device_info()["available_memory"]
    limit = _QUICK_BYTES if options.quick else min(_MOST_BYTES, free // 4)
    if options.pool_limit is not None:
        limit = options.pool_limit
    return core_checks("cache", _core.write_self_test(limit, options.why_no_gpu), "bytes")
