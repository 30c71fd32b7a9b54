# SPDX-License-Identifier: Apache-2.0
"""Where things lie in the checkout, and how the set-up runs commands and speaks.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CACHE = ROOT / ".cache"
BUILD = ROOT / "build" / "release"
REQUIREMENTS = ROOT / "requirements"

STARTED = time.monotonic()


class SetupError(Exception):
    """A failure whose text is all that the user needs."""


def say(text: str) -> None:
    """Tell a step, with the seconds since the start."""
    line = f"==> [{time.monotonic() - STARTED:.0f} s] {text}"
    print(f"\033[1m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def run(command: Iterable[object], what: str, **environment: str) -> None:
    """Run a command in the checkout with its output visible; `what` names it in the error."""
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=ROOT, env={**os.environ, **environment}, check=False)
    if result.returncode != 0:
        raise SetupError(f"{what} failed (exit code {result.returncode}): {' '.join(words)}")


@contextlib.contextmanager
def only_one(name: str, what: str) -> Iterator[None]:
    """Let one process of this checkout in at a time; the kernel frees the lock of one that dies."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"Waiting for another {what} of this checkout to finish…")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def path_with(folder: Path) -> str:
    """PATH with a folder before all others."""
    return f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a command of ours; an error that says it all is printed without a trace."""
    try:
        work()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command resumes.", file=sys.stderr)
        return 130
    return 0
