# SPDX-License-Identifier: Apache-2.0
"""The compiler, linker and libraries of a cross build for macOS, made of what was fetched.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from checkout import ROOT
from macos import stubs
from macos.fetch import FOLDER, MACOS_RELEASES, find_linker, mlx_folder, packages
from macos.link import MINIMUM_OS

LIBCXX_NAMES = ROOT / "scripts" / "macos" / "libcxx_names.txt"

COMPILER_OPTIONS = [
    *("-target", f"aarch64-macos.{MINIMUM_OS}", "-g0", "-fno-sanitize=all"),
    # What macOS 14's libraries lack is an error, as with Apple's SDK.
    "-U_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS",
    "-D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1",
    *("-Wno-macro-redefined", "-Werror=unguarded-availability-new"),
]
# The names that metal-cpp's headers use of frameworks that only Apple's SDK has.
FRAMEWORK_HEADERS = {
    "CoreFoundation/CoreFoundation.h": """
        #include <stdint.h>
        typedef double CFTimeInterval;
        typedef const void* CFTypeRef;
        typedef const struct __CFArray* CFArrayRef;
        typedef const struct __CFAllocator* CFAllocatorRef;
        typedef signed long CFIndex;
        """,
    "CoreGraphics/CGColorSpace.h": "typedef struct CGColorSpace* CGColorSpaceRef;",
    "CoreGraphics/CGGeometry.h": """
        typedef double CGFloat;
        struct CGSize { CGFloat width, height; };
        struct CGPoint { CGFloat x, y; };
        struct CGRect { struct CGPoint origin; struct CGSize size; };
        """,
    "IOSurface/IOSurfaceRef.h": "typedef struct __IOSurface* IOSurfaceRef;",
}


def write(path: Path, text: str, executable: bool = False) -> None:
    """Write a file unless it is so already, which would have everything compiled again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    if executable:
        path.chmod(0o755)


def library_names(python: Path) -> dict[str, set[str]]:
    """What the libraries of macOS export, as far as that is known here.

    libSystem's names are those that zig's stub lists. libc++'s are the ones that MLX's wheel for
    macOS 14 takes from it, and those of libcxx_names.txt.
    """
    script = "import sys; from macos.macho import print_imports; print_imports(sys.argv[1:])"
    mlx = mlx_folder(MACOS_RELEASES[0])
    files = [mlx / "lib" / "libmlx.dylib", *mlx.glob("core.*.so")]
    result = subprocess.run(
        [python, "-c", script, *files], stdout=subprocess.PIPE, check=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
    )  # fmt: skip
    system = packages(python) / "ziglang" / "lib" / "libc" / "darwin" / "libSystem.tbd"
    lines = LIBCXX_NAMES.read_text(encoding="utf-8").splitlines()
    listed = {line.split()[0] for line in lines if line.startswith("_")}
    return {
        stubs.LIBCXX: listed | set(json.loads(result.stdout)[stubs.LIBCXX]),
        stubs.LIBSYSTEM: stubs.exported_names(system.read_text(encoding="utf-8")),
        stubs.LIBOBJC: stubs.LIBOBJC_NAMES,
    }


def write_tools(python: Path) -> dict[str, set[str]]:
    """Write the compiler's wrapper and what it reads; return what each library exports."""
    for name, text in FRAMEWORK_HEADERS.items():
        write(FOLDER / "include" / name, f"#pragma once\n{text}\n")
    libraries = library_names(python)
    for install_name, names in libraries.items():
        write(FOLDER / "stubs" / f"{Path(install_name).stem}.tbd", stubs.stub(install_name, names))
    for name, text in wrappers(packages(python) / "ziglang" / "zig").items():
        write(FOLDER / "bin" / name, f"#!/bin/sh\n{text}", executable=True)
    return libraries


def wrappers(zig: Path) -> dict[str, str]:
    """Shell scripts that CMake takes for a compiler and its tools."""
    cache = shlex.quote(str(FOLDER / "zig"))
    start = f"export ZIG_GLOBAL_CACHE_DIR={cache} ZIG_LOCAL_CACHE_DIR={cache}\n"
    compile_command = [zig, "c++", *COMPILER_OPTIONS, "-isystem", FOLDER / "include"]
    link_script = ROOT / "scripts" / "macos" / "link.py"
    link_command = [sys.executable, link_script, FOLDER / "bin" / "ld64", FOLDER / "stubs"]
    tools = {name: f'{start}exec {quoted([zig, name])} "$@"\n' for name in ("ar", "ranlib")}
    return {
        **tools,
        "ld64": f'exec {quoted(find_linker())} "$@"\n',
        "c++": (
            f"{start}for word do\n  case $word in\n    -c | -E | -S | -fsyntax-only | --version)\n"
            f'      exec {quoted(compile_command)} "$@" ;;\n  esac\ndone\n'
            f'exec {quoted(link_command)} "$@"\n'
        ),
    }


def quoted(words: Iterable[object]) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)
