# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says of the machine that it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


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


def processor() -> str:
    """Return the processor's name, with what tells apart those of one name."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts and "model" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def _cpuinfo() -> dict[str, str]:
    """The kernel's facts on the first core."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
