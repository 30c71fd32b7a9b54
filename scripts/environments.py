# SPDX-License-Identifier: Apache-2.0
"""Folders in .cache that remember what they were made from, environments among them.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

from pathlib import Path

from checkout import run

KEY_FILE = "vllm_metal_key"


def up_to_date(folder: Path, key: str) -> bool:
    mark = folder / KEY_FILE
    return mark.exists() and mark.read_text(encoding="utf-8") == key


def mark_done(folder: Path, key: str) -> None:
    (folder / KEY_FILE).write_text(key, encoding="utf-8")


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def make(uv: str, interpreter: str, folder: Path, key: str, lock: Path, *arguments: str) -> None:
    """Make an environment of what is locked, anew; arguments: more of `uv pip sync`."""
    (folder / KEY_FILE).unlink(missing_ok=True)
    run([uv, "venv", "--quiet", "--clear", "--python", interpreter, folder], f"Creating {folder}")
    run(
        [uv, "pip", "sync", "--python", python_of(folder), "--require-hashes",
         "--only-binary", ":all:", *arguments, lock],
        f"Installing {lock.stem}",
    )  # fmt: skip
    mark_done(folder, key)
