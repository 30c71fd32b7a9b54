# SPDX-License-Identifier: Apache-2.0
"""What a report says of the machine and of what is installed; nothing of who owns it."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("vllm-metal", "vllm", "mlx", "torch", "transformers", "numpy")


def platform_facts() -> dict[str, Any]:
    """Return plain values by name."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "macos": platform.mac_ver()[0] or None,
        "machine": platform.machine(),
        "processor": processor(),
        "cores": num_cores(),
        "memory_bytes": physical_memory(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str | None:
    """Return the version of a package, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def physical_memory() -> int:
    """Return the machine's bytes of memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
