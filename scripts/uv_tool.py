# SPDX-License-Identifier: Apache-2.0
"""uv: the one on PATH, or our own locked copy in .cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import preflight
from checkout import CACHE, REQUIREMENTS, SetupError, only_one, run, say

OLDEST_UV = (0, 8)
PRIVATE = CACHE / "uv"


def find_uv() -> str | None:
    """Return a recent uv: $UV, on PATH, or the one that install_uv made."""
    for path in (os.environ.get("UV"), shutil.which("uv"), str(PRIVATE / "bin" / "uv")):
        if not path:
            continue
        try:
            output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        found = re.search(r"(\d+)\.(\d+)", output.stdout)
        if found and (int(found[1]), int(found[2])) >= OLDEST_UV:
            return path
    return None


def install_uv() -> str:
    """Install the locked uv into .cache, through a venv or, where Debian left that out, pip."""
    say("Installing uv into .cache/uv")
    shutil.rmtree(PRIVATE, ignore_errors=True)
    locked = ["--quiet", "--disable-pip-version-check", "--require-hashes"]
    locked += ["-r", str(REQUIREMENTS / "uv.txt")]
    if preflight.imports("ensurepip"):
        run([sys.executable, "-m", "venv", PRIVATE], "Creating .cache/uv")
        run([PRIVATE / "bin" / "python", "-m", "pip", "install", *locked], "Installing uv")
    else:
        target = ["install", "--target", str(PRIVATE)]
        run([sys.executable, "-m", "pip", *target, *locked], "Installing uv")
    return str(PRIVATE / "bin" / "uv")


def ensure_uv() -> str:
    if uv := find_uv():
        return uv
    with only_one("uv", "installation of uv"):
        return find_uv() or install_uv()


def package_cache(uv: str | None) -> Path:
    """Folder in which uv keeps what it downloaded."""
    if uv:
        output = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=False)
        if output.returncode == 0:
            return Path(output.stdout.strip())
    return Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache" / "uv"))


def managed_python(uv: str, wanted: str | None = None, lack: str = "Python 3.11 to 3.13") -> str:
    """Let uv fetch a Python where the system has none that fits (a Mac's own is 3.9)."""
    version = wanted or preflight.MANAGED_PYTHON
    say(f"No {lack} here: fetching {version} with uv")
    if preflight.is_mac():  # which may have uv's Python for Intel too
        version = f"cpython-{version}-macos-aarch64-none"
    for command in (["install", "--no-bin", version], ["find", "--managed-python", version]):
        result = subprocess.run(
            [uv, "python", *command], stdout=subprocess.PIPE, text=True, check=False
        )
        if result.returncode != 0:
            raise SetupError(preflight.report([preflight.no_interpreter(lack, wanted)]))
    return result.stdout.strip()
