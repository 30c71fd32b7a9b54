# SPDX-License-Identifier: Apache-2.0
"""Cross-build this package's wheels for macOS. Standard library only."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import preflight
from checkout import ROOT, SetupError, run, say
from macos import fetch
from macos.link import MINIMUM_OS

BUILD = ROOT / "build" / "macos"


@dataclass(frozen=True)
class Target:
    """A wheel: its tag, and the versions of Python that can build it, best first."""

    tag: str
    pythons: tuple[str, ...]


TARGETS = (Target("cp311-cp311", ("3.11",)), Target("cp312-abi3", ("3.12", "3.13")))
PLATFORM = f"macosx_{MINIMUM_OS.replace('.', '_')}_arm64"


def configuration(python: Path, headers: Path) -> dict[str, str]:
    return {
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "cmake" / "macos_cross.cmake"),
        "MLX_ROOT": str(fetch.mlx_folder(MINIMUM_OS)),
        "Python_EXECUTABLE": str(python),
        "Python_INCLUDE_DIR": str(headers),
        "VLLM_METAL_PRECOMPILE_HEADERS": "ON",
    }


def environment(python: Path, version: tuple[int, int]) -> dict[str, str]:
    """What makes CMake and scikit-build-core take this system for a Mac."""
    suffix = f".cpython-{version[0]}{version[1]}-darwin.so"
    return {
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "VLLM_METAL_MACOS_TOOLS": str(fetch.FOLDER),
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "cmake" / "macos_cross.cmake"),
        "CMAKE_GENERATOR": "Ninja",
        "MACOSX_DEPLOYMENT_TARGET": MINIMUM_OS,
        "_PYTHON_HOST_PLATFORM": f"macosx-{MINIMUM_OS}-arm64",
        "SETUPTOOLS_EXT_SUFFIX": suffix,
    }


def build(uv: str, target: Target, interpreter: preflight.Interpreter) -> Path:
    """Build one wheel into build/macos.

    All wheels are built in one folder, which compiles what knows nothing of Python once; what a
    wheel changes there for itself comes back from the compiler's cache.
    """
    python = fetch.environment(uv, interpreter)
    output = BUILD / target.tag
    shutil.rmtree(output, ignore_errors=True)
    defines = configuration(python, fetch.python_headers(interpreter))
    options = [f"cmake.define.{name}={value}" for name, value in defines.items()]
    options += [f"build-dir={BUILD / 'cmake'}", "install.strip=false"]
    say(f"Building {target.tag}-{PLATFORM}")
    run(
        [uv, "build", "--wheel", "--no-build-isolation", "--python", python, "-o", output,
         *(word for option in options for word in ("-C", option)), ROOT],
        f"Building {target.tag}-{PLATFORM}",
        **environment(python, interpreter.version),
    )  # fmt: skip
    (wheel,) = output.glob("*.whl")
    if not wheel.stem.endswith(f"-{target.tag}-{PLATFORM}"):
        raise SetupError(f"{wheel.name} is not tagged {target.tag}-{PLATFORM}")
    return wheel
