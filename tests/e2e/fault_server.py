# SPDX-License-Identifier: Apache-2.0
"""Servers whose clock, memory, files and processes tests may tamper with."""

import os
import struct
from pathlib import Path

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


def shared_memory() -> set[str]:
    """Names of POSIX shared memory and semaphores of this machine, where it lists them."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
