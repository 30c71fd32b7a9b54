# SPDX-License-Identifier: Apache-2.0
"""Link for macOS: `link.py LD64 STUBS ARGUMENT…` takes the arguments of a compiler driver.

Options for the compiler are dropped, those for the linker are passed to LLVM's ld64. The C++
runtime and the system's libraries are the text stubs in the folder STUBS. Standard library only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MINIMUM_OS = "14.0"
# Of the driver's options, those that go on to the linker, by how many words they are.
PASSED = {"-bundle": 1, "-dynamiclib": 1, "-o": 2, "-install_name": 2, "-undefined": 2}
PASSED_PREFIXES = ("-l", "-L")
# Two words that would ask for what there is no stub for.
REFUSED = {"-framework", "-weak_framework"}
# What Apple's linker takes and LLVM's has no use for.
DROPPED = {"-search_paths_first", "-headerpad_max_install_names"}


def linker_words(arguments: list[str]) -> Iterator[str]:
    """The words of a driver's command line that concern the linker."""
    rest = iter(arguments)
    for word in rest:
        if word.startswith("-Wl,"):
            yield from (part for part in word[4:].split(",") if part not in DROPPED)
        elif word in REFUSED:
            raise ValueError(f"{word} {next(rest)}: the cross build has no stub for it")
        elif word in PASSED:
            yield word
            for _ in range(PASSED[word] - 1):
                yield next(rest)
        elif word.startswith(PASSED_PREFIXES) or not word.startswith("-"):
            yield word


def command(linker: str, stubs: Path, arguments: list[str]) -> list[str]:
    target = ["-arch", "arm64", "-platform_version", "macos", MINIMUM_OS, MINIMUM_OS]
    libraries = [str(path) for path in sorted(stubs.glob("*.tbd"))]
    # arm64 runs nothing unsigned; a library that nothing is taken from is not asked for.
    options = ["-adhoc_codesign", "-dead_strip_dylibs"]
    return [linker, *target, *options, *linker_words(arguments), *libraries]


def main() -> int:
    linker, stubs, *arguments = sys.argv[1:]
    return subprocess.run(command(linker, Path(stubs), arguments), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
