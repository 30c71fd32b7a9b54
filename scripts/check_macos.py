# SPDX-License-Identifier: Apache-2.0
"""`make check-macos`: what can be known of macOS without a Mac.

Cross-builds the wheels for macOS 14 on arm64, looks up every name that they import, and resolves
them with all they need for macOS 14, 15 and 26. What that takes is fetched by name into
.cache/macos. docs/metal_verification.md says what it does not show.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import uv_tool
from checkout import ROOT, SetupError, exit_code, run, say
from macos import fetch, resolve, sources, toolchain, wheels


def check_host() -> None:
    """Fail where the cross compiler's parts are not to be had; a Mac builds natively instead."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        raise SetupError(
            f"check-macos runs on Linux on x86_64 or aarch64, not on {sys.platform} on "
            f"{platform.machine()}. On a Mac: make test"
        )


def build_and_check(uv: str) -> list[Path]:
    """Build every wheel, then check each with the Python that it was built with."""
    builders = {target: fetch.find_python(uv, target.pythons) for target in wheels.TARGETS}
    for release in fetch.MACOS_RELEASES:
        fetch.fetch_mlx(uv, release)
    tools = fetch.environment(uv, next(iter(builders.values())))
    exports = toolchain.write_tools(tools)
    listing = fetch.FOLDER / "exports.json"
    listing.write_text(json.dumps({name: sorted(has) for name, has in exports.items()}))
    folders = [fetch.mlx_folder(release) for release in fetch.MACOS_RELEASES]
    built = []
    for target, interpreter in builders.items():
        wheel = wheels.build(tools, target, interpreter)
        python = fetch.exporting_file(interpreter)
        run(
            [tools, "-m", "macos.check_wheel", wheel, python, listing, *folders],
            f"Checking {wheel.name}",
            PYTHONPATH=str(ROOT / "scripts"),
        )
        built.append(wheel)
    return built


def refuse(problems: Iterator[str]) -> None:
    if found := list(problems):
        raise SetupError("\n".join(found))


def check(with_tests: bool) -> None:
    check_host()
    uv = uv_tool.ensure_uv()
    built = build_and_check(uv)
    say("Resolving the wheels with all they need, for Python 3.11 to 3.13 on macOS 14, 15 and 26")
    refuse(resolve.problems(uv, built))
    say(f"Compiling examples{', tests and benchmarks (minutes)' if with_tests else ''} for macOS")
    refuse(sources.problems(with_tests))
    say("check-macos passed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tests", action="store_true", help="compile the C++ tests as well")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)
    return exit_code(lambda: check(arguments.tests))


if __name__ == "__main__":
    sys.exit(main())
