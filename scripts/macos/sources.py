# SPDX-License-Identifier: Apache-2.0
"""Compile for macOS what is in no wheel: the example, and the C++ tests and benchmarks.

Compiled only: there is no GoogleTest for macOS here to link with. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkout import ROOT, SetupError
from macos import fetch
from macos.link import MINIMUM_OS

GOOGLETEST = ("gtest", "gmock")
OPTIONS = [
    *("-std=c++20", "-O0", "-Wall", "-Wextra"),
    *("-Wno-unused-parameter", "-Wno-missing-field-initializers"),
    # zig's <math.h> includes a part of <float.h>, after which the whole is taken for included.
    *("-DFLT_MAX=__FLT_MAX__", "-DDBL_MAX=__DBL_MAX__"),
    *("-D_XOPEN_SOURCE=700", "-D_DARWIN_C_SOURCE"),  # as for tests/cpp/gpu on a Mac
]


def examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*.cpp"))


def tests() -> list[Path]:
    """The C++ tests and benchmarks that a Mac builds."""
    found = [*(ROOT / "tests" / "cpp").rglob("*.cpp"), *(ROOT / "benchmarks" / "cpp").glob("*.cpp")]
    return sorted(found)


def googletest_headers() -> Path:
    """A folder with GoogleTest's headers alone: this system's C library has its beside them."""
    folder = fetch.FOLDER / "googletest"
    folder.mkdir(parents=True, exist_ok=True)
    for name in GOOGLETEST:
        places = (Path(prefix) / "include" / name for prefix in ("/usr", "/usr/local"))
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise SetupError(f"The headers of {name} are missing: apt-get install lib{name}-dev")
        link = folder / name
        if not link.exists():
            link.symlink_to(found)
    return folder


def compiles(source: Path, includes: list[Path]) -> str:
    """What the compiler has against a source; empty: nothing."""
    mlx = fetch.mlx_folder(MINIMUM_OS) / "include"
    system: list[str | Path] = [
        word for path in (*includes, mlx, mlx / "metal_cpp") for word in ("-isystem", path)
    ]
    own: list[str | Path] = ["-I", ROOT / "src", "-I", ROOT / "tests" / "cpp"]
    definitions = [f'-DVLLM_METAL_SOURCE_DIR="{ROOT}"']
    with tempfile.TemporaryDirectory() as folder:
        command: list[str | Path] = [
            fetch.FOLDER / "bin" / "c++",
            *OPTIONS,
            *definitions,
            *own,
            *system,
        ]
        command += ["-c", source, "-o", Path(folder) / "object.o"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    name = source.relative_to(ROOT)
    return "" if result.returncode == 0 else f"{name} does not compile for macOS:\n{result.stderr}"


def problems(with_tests: bool) -> Iterator[str]:
    includes = [googletest_headers()] if with_tests else []
    sources = [*examples(), *(tests() if with_tests else [])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from filter(None, pool.map(lambda source: compiles(source, includes), sources))
