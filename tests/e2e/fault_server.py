# SPDX-License-Identifier: Apache-2.0
"""Servers whose clock, memory, files and processes tests may tamper with."""

import os
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import psutil

# Loaded by every Python process of the server, for its folder is on PYTHONPATH. time.time() adds
# what stands in the file CLOCK_FILE, a double; monotonic clocks go on as they do when a system's
# clock is set.
_SITECUSTOMIZE = """
import mmap
import os
import struct
import time

if "CLOCK_FILE" in os.environ:
    with open(os.environ["CLOCK_FILE"], "rb") as file:
        _offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    _time = time.time
    time.time = lambda: _time() + struct.unpack("d", _offset[:])[0]
"""


class Clock:
    """The wall clock of servers started with `variables`."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        self._file = folder / "clock"
        self.set(0.0)
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        self.variables = {"PYTHONPATH": path, "CLOCK_FILE": str(self._file)}

    def set(self, seconds: float) -> None:
        """Set the clock to so many seconds after the true time."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


class WorkingMemory:
    """What kernels of servers started with `variables` work in, which can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.variables: dict[str, str] = {}  # none where the system preloads nothing
        self._file = folder / "no_working_memory"
        compiler = _compiler()
        if sys.platform != "linux" or compiler is None:
            return
        library = str(folder / "no_working_memory.so")
        source = Path(__file__).with_name("no_working_memory.cpp")
        options = ["-std=c++20", "-O2", "-shared", "-fPIC", "-o", library]
        subprocess.run([*compiler, *options, str(source)], check=True)
        preloaded = ":".join(filter(None, (library, os.environ.get("LD_PRELOAD"))))
        self.variables = {"LD_PRELOAD": preloaded, "NO_WORKING_MEMORY": str(self._file)}

    def take_away(self) -> None:
        self._file.touch()


def _compiler() -> list[str] | None:
    """Return the C++ compiler that CMake would take."""
    candidates = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]]
    return next((command for command in candidates if command and shutil.which(command[0])), None)


def limit_memory(process: psutil.Process, more: int = 4 << 20) -> None:
    """Give the process no more than so many bytes beside those that it has."""
    limit = process.memory_info().vms + more
    process.rlimit(psutil.RLIMIT_AS, (limit, psutil.RLIM_INFINITY))


def lift_limit(process: psutil.Process) -> None:
    process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))


def shared_memory(processes: list[psutil.Process]) -> set[str]:
    """Names of shared memory and semaphores of the processes, which outlive them unless removed."""
    if not hasattr(psutil.Process, "memory_maps"):  # as on macOS
        return set()
    paths = {Path(file.path) for process in processes for file in process.memory_maps()}
    # One that is in use and has no name any more is shown as if it had.
    return {path.name for path in paths if path.parent == Path("/dev/shm") and path.exists()}
