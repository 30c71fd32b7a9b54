# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says of the machine that it ran on."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from vllm_metal.selftest.facts import num_cores, physical_memory, processor


@dataclass
class Machine:
    processor: str
    cores: int
    threads: int
    memory_gb: int
    system: str

    @staticmethod
    def here(threads: int) -> Machine:
        """Describe this machine; every engine computes on `threads` threads."""
        system = f"{platform.system()} {platform.release()} {platform.machine()}"
        return Machine(processor(), num_cores(), threads, round(physical_memory() / 2**30), system)

    def line(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.threads} threads, "
            f"{self.memory_gb} GB, {self.system}"
        )
