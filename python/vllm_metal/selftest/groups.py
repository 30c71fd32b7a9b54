# SPDX-License-Identifier: Apache-2.0
"""The groups of checks, in the order in which they run. Each is run by a process of its own."""

import importlib
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vllm_metal.selftest.checks import Check, Options


@dataclass(frozen=True)
class Group:
    """A module with `checks(options)`, and how long one of them may take."""

    name: str
    help: str
    seconds_a_check: float
    module: str = ""

    def checks(self, options: Options) -> list[Check]:
        """Return what there is to run on this machine. Names begin with the group's."""
        module = importlib.import_module(self.module or f"vllm_metal.selftest.{self.name}_checks")
        return module.checks(options)


GROUPS = (
    Group("platform", "the installation, as `vllm-metal doctor` sees it, and the device", 300),
    Group("kernels", "every op on every device against its fallback on the CPU", 180),
    Group("cache", "writes into KV caches of growing size take no memory", 300),
    Group("models", "tiny models of several architectures: GPU and kernels against the CPU", 300),
    Group(
        "memory", "what the device reports, the memory plan, its limits, impossible requests", 300
    ),
    Group("serve", "`vllm serve` with the default model, in both modes of the KV cache", 1800),
    Group("bench", "tokens a second of our core and of torch; no pass or fail", 900),
)


def wanted_groups(patterns: list[str]) -> list[Group]:
    """Return the groups that may have checks which the patterns mean.

    ValueError names a pattern that no group begins like.
    """
    first = [pattern.partition("/")[0] for pattern in patterns]
    for pattern, head in zip(patterns, first, strict=True):
        if not any(fnmatchcase(group.name, head) for group in GROUPS):
            names = ", ".join(group.name for group in GROUPS)
            raise ValueError(f"[selftest] --only {pattern} must begin with one of {names}.")
    return [
        group
        for group in GROUPS
        if not first or any(fnmatchcase(group.name, head) for head in first)
    ]
