# SPDX-License-Identifier: Apache-2.0
"""Build wheels from this source tree: `build_wheels.py --out DIRECTORY NAME…`.

  vllm-metal  this package
  vllm        vLLM without device code, which runs anywhere
  vllm-cpu    vLLM with its CPU kernels on torch, for VLLM_METAL_USE_MLX=0

Run by the Python of an environment that has what requirements/serve.txt locks; install.sh and the
release workflow do. `--check` says instead what is missing for compiling with this Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import preflight
import vllm_source
from checkout import ROOT, SetupError, exit_code, path_with, run, say
from setup_env import digest, setup_lock, vllm_key

PYTHON = Path(sys.executable)


def check() -> None:
    """Raise with all that is missing for compiling an extension of this Python."""
    _, problems = preflight.choose_interpreter(str(PYTHON))
    problems += preflight.check_compiler()
    if problems:
        raise SetupError(preflight.report(problems))


def build_vllm_metal(out: Path) -> None:
    say("Building vllm-metal (C++; minutes the first time)")
    with tempfile.TemporaryDirectory() as folder:
        run(
            [PYTHON, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps",
             "--no-build-isolation", ROOT, "-w", folder],
            "Building vllm-metal",
            PATH=path_with(PYTHON.parent),  # its cmake and ninja
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        shutil.move(str(wheel), out / wheel.name)


def build_vllm(out: Path) -> None:
    with setup_lock():
        wheel = vllm_source.build_wheel(vllm_key(), PYTHON)
    shutil.copy(wheel, out / wheel.name)


def build_vllm_cpu(out: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = digest([vllm_source.LOCK], repr(vllm_source.PATCHES), "cpu", version)
    os.environ["PATH"] = path_with(PYTHON.parent)
    with setup_lock():
        wheel = vllm_source.build_wheel(key, PYTHON, "cpu")
    shutil.copy(wheel, out / wheel.name)


WHEELS: dict[str, Callable[[Path], None]] = {
    "vllm-metal": build_vllm_metal,
    "vllm": build_vllm,
    "vllm-cpu": build_vllm_cpu,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--check", action="store_true", help="build nothing")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WHEELS))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(WHEELS):
        parser.error(f"no such wheel: {', '.join(sorted(unknown))}")

    def build() -> None:
        if arguments.check:
            check()
        for name in arguments.names:
            arguments.out.mkdir(parents=True, exist_ok=True)
            WHEELS[name](arguments.out.resolve())

    return exit_code(build)


if __name__ == "__main__":
    sys.exit(main())
