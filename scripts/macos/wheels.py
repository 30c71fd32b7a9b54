# SPDX-License-Identifier: Apache-2.0
"""Cross-build this package's wheels for macOS. Standard library only."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import preflight
from checkout import ROOT, SetupError, path_with, run, say
from environments import mark_done, up_to_date
from macos import fetch
from macos.link import MINIMUM_OS
from setup_env import digest, package_key

BUILD = ROOT / "build" / "macos"
# The build back end is called as PEP 517 says, without a front end: uv would ask the interpreter
# what it is with environment() set, and this system's Python cannot say which macOS it runs on.
BUILD_WHEEL = (
    "import json, sys; from scikit_build_core.build import build_wheel; "
    "build_wheel(sys.argv[1], json.loads(sys.argv[2]))"
)


@dataclass(frozen=True)
class Target:
    """A wheel: its tag, and the versions of Python that can build it, best first."""

    tag: str
    pythons: tuple[str, ...]


TARGETS = (Target("cp311-cp311", ("3.11",)), Target("cp312-abi3", ("3.12", "3.13")))
PLATFORM = f"macosx_{MINIMUM_OS.replace('.', '_')}_arm64"


def configuration(interpreter: preflight.Interpreter) -> dict[str, str]:
    return {
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "cmake" / "macos_cross.cmake"),
        "MLX_ROOT": str(fetch.mlx_folder(MINIMUM_OS)),
        "Python_EXECUTABLE": interpreter.path,
        "Python_INCLUDE_DIR": str(fetch.python_headers(interpreter)),
        "VLLM_METAL_PRECOMPILE_HEADERS": "ON",
    }


def environment(tools: Path, version: tuple[int, int]) -> dict[str, str]:
    """What makes CMake and scikit-build-core take this system for a Mac.

    Of the tools, what an interpreter imports fits all versions: one environment serves them all.
    Were there more, the build folder would be cleared each time.
    """
    return {
        "PATH": path_with(tools.parent),
        "PYTHONPATH": str(fetch.packages(tools)),
        "VLLM_METAL_MACOS_TOOLS": str(fetch.FOLDER),
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "cmake" / "macos_cross.cmake"),
        "CMAKE_GENERATOR": "Ninja",
        "MACOSX_DEPLOYMENT_TARGET": MINIMUM_OS,
        "_PYTHON_HOST_PLATFORM": f"macosx-{MINIMUM_OS}-arm64",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version[0]}{version[1]}-darwin.so",
    }


def key_of(interpreter: preflight.Interpreter) -> str:
    """Everything that a wheel is made of."""
    names = ("fetch.py", "libcxx_names.txt", "link.py", "stubs.py", "toolchain.py", "wheels.py")
    scripts = [ROOT / "scripts" / "macos" / name for name in names]
    return digest([*scripts, fetch.LOCK, fetch.MLX_LOCK], package_key("macos"), interpreter.path)


def build(tools: Path, target: Target, interpreter: preflight.Interpreter) -> Path:
    """Build one wheel into build/macos, unless the one that is there is made of the same.

    All wheels are built in one folder, so that what knows nothing of Python is compiled once.
    """
    output = BUILD / target.tag
    key = key_of(interpreter)
    if not up_to_date(output, key):
        say(f"Building {target.tag}-{PLATFORM}")
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        defines = configuration(interpreter)
        settings = {f"cmake.define.{name}": value for name, value in defines.items()}
        settings |= {"build-dir": str(BUILD / "cmake"), "install.strip": "false"}
        run(
            [interpreter.path, "-c", BUILD_WHEEL, output, json.dumps(settings)],
            f"Building {target.tag}-{PLATFORM}",
            **environment(tools, interpreter.version),
        )
        mark_done(output, key)
    (wheel,) = output.glob("*.whl")
    if not wheel.stem.endswith(f"-{target.tag}-{PLATFORM}"):
        raise SetupError(f"{wheel.name} is not tagged {target.tag}-{PLATFORM}")
    return wheel
