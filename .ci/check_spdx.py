# SPDX-License-Identifier: Apache-2.0
"""Check that every source file named on the command line says its licence in its first lines."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

TAG = "SPDX-License-Identifier: Apache-2.0"
SUFFIXES = {".cpp", ".h", ".cu", ".metal", ".inc", ".py", ".sh", ".cmake", ".toml"}
NAMES = {"CMakeLists.txt", "Makefile", "run"}
GENERATED = {"python/vllm_metal/_core.pyi"}


def needs_tag(path: Path) -> bool:
    if path.as_posix() in GENERATED or path.stat().st_size == 0:
        return False
    return path.suffix in SUFFIXES or path.name in NAMES


def has_tag(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return any(TAG in line for line in itertools.islice(file, 3))


def main() -> int:
    checked = [path for path in map(Path, sys.argv[1:]) if needs_tag(path)]
    missing = [path for path in checked if not has_tag(path)]
    for path in missing:
        print(f"{path}: its first lines lack '{TAG}'")
    print(f"licence headers: {len(checked)} files, {len(missing)} without")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
