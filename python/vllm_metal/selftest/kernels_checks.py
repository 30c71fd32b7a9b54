# SPDX-License-Identifier: Apache-2.0
"""Every op of the core on every device against its fallback on the CPU."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_metal.selftest.checks import (
    FAILED,
    SKIPPED,
    Check,
    CheckFailed,
    Finding,
    Options,
    Skip,
)

if TYPE_CHECKING:
    from vllm_metal import _core


def checks(options: Options) -> list[Check]:
    """Return the checks of the core's own table."""
    from vllm_metal import _core

    return core_checks("kernels", _core.kernel_self_test(options.quick, options.why_no_gpu))


def core_checks(group: str, tests: "_core.SelfTest", unit: str = "") -> list[Check]:
    """Return checks of the core under names that begin with the group's."""

    def runner(name: str) -> Callable[[], Finding]:
        return lambda: _run(tests, name, unit)

    return [Check(f"{group}/{name}", runner(name)) for name in tests.names]


def _run(tests: "_core.SelfTest", name: str, unit: str) -> Finding:
    row = tests.run(name)
    if row["outcome"] == SKIPPED:
        raise Skip(row["detail"])
    if row["outcome"] == FAILED and row["worst_error"] is None:
        raise CheckFailed(row["detail"])
    figures = {"unit": unit} if unit else {}
    return Finding(row["worst_error"], row["tolerance"], row["detail"], figures)
