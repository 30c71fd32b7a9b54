# SPDX-License-Identifier: Apache-2.0
"""Reads JSON files of models, which anybody may have written."""

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 100_000_000


def read_json(path: Path) -> Any:
    """Return what the file holds.

    ValueError says what is wrong with it, without its name; OSError when it cannot be read. What
    is no regular file (a pipe would block) or larger than MAX_BYTES is not read, and text that is
    nested too deep for Python's reader is bad text like any other.
    """
    # Opened first and looked at then: between the two it cannot become another.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", closefd=True) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"it has {status.st_size} bytes; at most {MAX_BYTES} are allowed")
        content = file.read(MAX_BYTES + 1)
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
