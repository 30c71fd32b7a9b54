# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says of the machine that it ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from vllm_metal.selftest.facts import num_cores, processor


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
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        system = f"{platform.system()} {platform.release()} {platform.machine()}"
        return Machine(processor(), num_cores(), threads, round(memory / 2**30), system)

    def line(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.threads} threads, "
            f"{self.memory_gb} GB, {self.system}"
        )
