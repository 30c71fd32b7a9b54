# SPDX-License-Identifier: Apache-2.0
"""Whether all that an installation on a Mac needs is there as wheels for it.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import preflight
from checkout import CACHE, REQUIREMENTS, say
from macos.fetch import FOLDER, MACOS_RELEASES

PYTHON_VERSIONS = tuple(f"{major}.{minor}" for major, minor in preflight.PYTHON_VERSIONS)
# The versions that installations take: a release of something else tomorrow breaks nothing here.
CONSTRAINTS = REQUIREMENTS / "serve.txt"
EXCLUDES = REQUIREMENTS / "excludes.txt"
# A resolution without one of these has left out what an installation is for.
WANTED = ("mlx", "mlx-metal", "torch", "transformers", "vllm-metal")


def fitting(wheels: list[Path], version: str) -> Path:
    """The wheel that pip takes for a version of Python."""
    minor = int(version.split(".")[1])
    for wheel in wheels:
        tag = re.search(r"-cp3(\d+)-(cp3\d+|abi3)-", wheel.name)
        if tag and (int(tag[1]) == minor or (tag[2] == "abi3" and int(tag[1]) <= minor)):
            return wheel
    raise ValueError(f"no wheel for Python {version} among {[wheel.name for wheel in wheels]}")


def vllm_wheel() -> Path | None:
    """vLLM's pure-Python wheel, if `make setup` has built it here."""
    return next(iter(sorted(CACHE.glob("vllm/*/vllm-*-py3-none-any.whl"))), None)


def inputs(wheel: Path, vllm: Path | None) -> str:
    """What an installation asks for: requirements/serve.in, this package and vLLM."""
    lines = [f"-r {REQUIREMENTS / 'serve.in'}", f"vllm-metal @ {wheel.as_uri()}"]
    return "\n".join([*lines, *([f"vllm @ {vllm.as_uri()}"] if vllm else [])]) + "\n"


def resolve(uv: str, wheel: Path, vllm: Path | None, version: str, release: str) -> str:
    """Resolve for one Python on one macOS; returns what is wrong, or nothing."""
    source = FOLDER / f"resolve-{version}-{release}.in"
    source.write_text(inputs(wheel, vllm), encoding="utf-8")
    result = subprocess.run(
        [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:",
         "--python-platform", "aarch64-apple-darwin", "--python-version", version,
         "--constraints", CONSTRAINTS, "--excludes", EXCLUDES, source],
        capture_output=True, text=True, check=False,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": release},
    )  # fmt: skip
    name = f"Python {version} on macOS {release}"
    if result.returncode != 0:
        return f"{name}: {result.stderr.strip()}"
    names = set(re.findall(r"^([a-z0-9._-]+) ?(?:==|@)", result.stdout, re.MULTILINE))
    missing = {*WANTED, *(["vllm"] if vllm else [])} - names
    return f"{name}: resolved without {', '.join(sorted(missing))}" if missing else ""


def problems(uv: str, wheels: list[Path]) -> Iterator[str]:
    """What does not resolve, of every version of Python on every release of macOS."""
    vllm = vllm_wheel()
    if vllm is None:
        say("vLLM's wheel is not built here (make setup): resolving its list in serve.in alone")
    cases = [(version, release) for version in PYTHON_VERSIONS for release in MACOS_RELEASES]
    with ThreadPoolExecutor(len(cases)) as pool:
        # Most of the time goes by waiting for the registry.
        found = pool.map(lambda case: resolve(uv, fitting(wheels, case[0]), vllm, *case), cases)
        yield from filter(None, found)
